"""What people read: stock, history, verification and comparison of stock."""
