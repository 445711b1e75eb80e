"""Lightning callbacks: they read what step methods return and log or write it."""
