# make demo      set up, convert a real model, and watch it answer sensors over MQTT
# make demo-micro  the same on an emulated microcontroller, behind the bridge
# make test      set up, lint, type-check, and run every test but the slow ones
# make test-slow-ci  the slow ones that CI has time for
# make test-all  the slow ones too
# make format    let ruff rewrite the code
# make package   build the sdist and the wheel into dist/
# make fuzz      ten minutes of damaged input for each reader of the C engine (scripts/fuzz.sh)
# make peers     stonechat beside llama.cpp on this machine (benchmarks/peers.py)

VENV := .venv
PYTHON := $(VENV)/bin/python
VENV214 := .venv-tflite214
BUNDLE := build/smollm2-135m
CHECKPOINT := build/SmolLM2-135M-Instruct.Q4_1.gguf
MINILM := build/all-MiniLM-L6-v2

.PHONY: demo demo-micro test test-slow test-slow-ci test-all lint format package peers fuzz setup setup-demo setup-tests setup-emulation model clean

setup:
	@scripts/setup_venv.sh $(VENV) dev

setup-demo:
	@scripts/setup_venv.sh $(VENV) demo

$(CHECKPOINT): | setup-demo
	@mkdir -p $(@D) && $(VENV)/bin/stonechat get smollm2-135m -o $@

$(MINILM)/config.json: | setup
	@mkdir -p $(dir $(@D)) && $(VENV)/bin/stonechat get all-minilm-l6-v2 -o $(@D)

$(BUNDLE)/manifest.json: $(CHECKPOINT) | setup-demo
	@echo "converting $(CHECKPOINT) for 64-bit Linux boards" >&2
	@$(VENV)/bin/stonechat convert $(CHECKPOINT) --profile pi -o $(BUNDLE)

demo: $(BUNDLE)/manifest.json
	@$(PYTHON) -m toolkit.demo --bundle $(BUNDLE)

demo-micro: setup
	@scripts/setup_debian.sh mosquitto gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
	@$(PYTHON) -m toolkit.demo.micro

# Debian packages that some tests run; where they cannot be installed those tests are skipped and say so.
setup-tests: setup
	@scripts/setup_debian.sh mosquitto mosquitto-clients strace openssh-server sudo python3-venv dosfstools mtools fish tcsh \
		chromium chromium-driver
	@scripts/setup_venv.sh $(VENV214) tflite214 || echo "setup: no tflite-runtime 2.14 here; its tests are skipped" >&2

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PYTHON) scripts/check_words.py

# Two at a time, each file in one of them: a file's tests share what they convert, and its brokers.
test: setup-tests lint
	@STONECHAT_TFLITE214_PYTHON=$(CURDIR)/$(VENV214)/bin/python $(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" $(PYTEST_ARGS)

# ARM boards with Linux (tests/system/emulated_board.sh) and microcontrollers (tests/system/test_firmware.py) in QEMU
setup-emulation:
	@scripts/setup_debian.sh debootstrap debian-archive-keyring qemu-user-static
	@scripts/setup_debian.sh gcc-arm-none-eabi libnewlib-arm-none-eabi gcc-riscv64-unknown-elf \
		picolibc-riscv64-unknown-elf qemu-system-arm qemu-system-misc gcc-arm-linux-gnueabihf libc6-dev-armhf-cross \
		gcc-aarch64-linux-gnu libc6-dev-arm64-cross
	@scripts/setup_lwip.sh

test-slow: setup-tests setup-emulation $(CHECKPOINT) $(MINILM)/config.json
	@STONECHAT_SMOLLM2=$(CURDIR)/$(CHECKPOINT) STONECHAT_MINILM=$(CURDIR)/$(MINILM) STONECHAT_TFLITE214_PYTHON=$(CURDIR)/$(VENV214)/bin/python $(PYTHON) -m pytest -m slow $(PYTEST_ARGS)

# As many of the slow tests as CI has time for, in this order: what is left when the time is up is skipped, and the
# summary says so. Not among them are those of which one alone takes many minutes: real models, the soak, a training.
SLOW_CI := tests/device_runtime tests/boards tests/toolkit/deploy tests/test_package.py \
	tests/system/test_board_over_ssh.py tests/system/test_deployment_story.py tests/system/test_bare_metal_engine.py \
	tests/system/test_emulated_boards.py
SLOW_CI_NOT := tests/device_runtime/update/test_kills.py::test_killed_by_the_kernel_at_a_system_call_of_the_real_command
SLOW_CI_S := 1200

test-slow-ci: setup-tests setup-emulation
	@STONECHAT_TFLITE214_PYTHON=$(CURDIR)/$(VENV214)/bin/python $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m slow --slow-budget-s $(SLOW_CI_S) -rs --deselect $(SLOW_CI_NOT) $(SLOW_CI) $(PYTEST_ARGS)

test-all: test test-slow

format: setup
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# Publishing is then: twine upload dist/*
package: setup
	rm -rf dist
	@$(PYTHON) -m build

peers: $(CHECKPOINT)
	@$(PYTHON) benchmarks/peers.py $(CHECKPOINT)

fuzz:
	@scripts/setup_debian.sh clang libclang-rt-14-dev
	@scripts/fuzz.sh

clean:
	rm -rf build dist .venv .venv-tflite214 .venv-peers
