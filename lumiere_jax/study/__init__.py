"""A study with people: which of two methods' clips they prefer."""
