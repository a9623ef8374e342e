"""Getting firmware and models onto microcontrollers: one file per method behind the `Flasher` seam."""
