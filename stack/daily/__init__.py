"""`stack daily`: every night the model learns a day, and a version of it is out in the morning."""
