# Starts systemd as the first process of a container, on a copy-on-write view of this machine's files.
#   unshare --fork --kill-child --pid --mount --uts --ipc --cgroup sh tests/support/systemd_board.sh FOLDER
# FOLDER/etc is laid over /etc. Nothing is written outside of FOLDER; the network is the machine's.
set -eu
folder=$1
mount --make-rprivate /
mkdir -p "$folder/disk"
mount -t tmpfs -o size=2g tmpfs "$folder/disk"
cd "$folder/disk"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cp -r "$folder/etc/." root/etc/
chroot root useradd --create-home --password '*' --shell /bin/sh pi
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir run/lock
exec chroot . /usr/bin/env -i container=stonechat PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=board.target --log-target=journal --show-status=0
