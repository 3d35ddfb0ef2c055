"""What is done to trained weights before they are served."""
