"""What is added to a loaded model and taken away again while it runs: LoRAs, ControlNets, image prompts."""
