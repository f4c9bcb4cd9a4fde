"""What is done for each type of task. Here it is told, in yours it would be done."""
