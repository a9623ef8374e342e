"""Getting firmware and models onto microcontrollers: one file per method, each a `Flasher` seam."""
