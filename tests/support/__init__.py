"""What the tests share: no tests are in here."""
