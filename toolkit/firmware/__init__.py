"""Firmware for microcontrollers: built with the compilers that the machine has, run in QEMU."""
