"""What is measured after training, by judges that were not the reward."""
