"""What UL2 is: spans, denoisers and their mixture. numpy only."""
