"""``slash32 doctor``: is this machine fit for slash32, and what would break it later."""
