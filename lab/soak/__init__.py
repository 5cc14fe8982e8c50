"""Thousands of pods come and go on one node while launchers and agents are killed: what grows?"""
