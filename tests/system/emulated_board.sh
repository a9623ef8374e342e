#!/bin/sh
# Makes the system of a board that this machine can run through QEMU: Debian 12, as Raspberry Pi OS is made of.
#   tests/system/emulated_board.sh arm64|armhf FOLDER
# Prints its python3, from which `python3 -m venv` makes environments as on the board. What was downloaded is kept in
# FOLDER and used again. Exit code 3: something is not installed here; stderr says what.
#
# No chroot, no second stage, no binfmt: packages are unpacked, and QEMU prefers a file of the system (-L) to one of
# this machine. Needs debootstrap and qemu-user-static, and root (or sudo) to download.
set -eu
[ $# = 2 ] || { echo "usage: $0 arm64|armhf FOLDER" >&2; exit 2; }
arch=$1 folder=$2
case $arch in
# The CPU is always named: what QEMU makes up by default (-cpu max) has given wrong int8 results. The oldest that each
# kind of board has: what runs there runs on the later ones.
arm64) qemu=qemu-aarch64-static cpu=cortex-a53 triplet=aarch64-linux-gnu part=0xd03 include=python3-venv ;;
# For 32-bit boards the package index lacks these (docs/guides/boards-32-bit.md).
armhf) qemu=qemu-arm-static cpu=cortex-a7 triplet=arm-linux-gnueabihf part=0xc07
    include=python3-venv,python3-numpy,python3-sentencepiece,python3-yaml,python3-cryptography
    include=$include,python3-cffi-backend ;; # which cryptography needs under a virtual name; apt finds it by itself
*) echo "there is no board for $arch; arm64 and armhf exist" >&2; exit 2 ;;
esac
for tool in debootstrap:debootstrap dpkg-deb:dpkg $qemu:qemu-user-static; do
    PATH=$PATH:/usr/sbin command -v "${tool%:*}" >/dev/null || {
        echo "${tool%:*} is not installed (Debian: apt install ${tool#*:})" >&2; exit 3; }
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
root=$folder/root python=$folder/root/usr/bin/python3
stamp=$folder/.made-$(cksum <"$0" | cut -d' ' -f1)
[ ! -e "$stamp" ] || { echo "$python"; exit 0; }

if [ "$(cat "$folder/debs/include" 2>/dev/null)" != "$include" ]; then
    if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo -n"; else
        echo "debootstrap needs root, or sudo without a password" >&2; exit 3
    fi
    fetched=$(mktemp -d)
    trap '$as_root rm -rf "$fetched"' EXIT
    $as_root env PATH="$PATH:/usr/sbin" debootstrap --download-only --arch="$arch" --variant=minbase \
        --include="$include" bookworm "$fetched" >"$folder/debootstrap.log" 2>&1 || {
        tail -n 3 "$folder/debootstrap.log" >&2; echo "debootstrap could not download Debian for $arch" >&2; exit 3; }
    rm -rf "$folder/debs.new" "$folder/debs"
    mkdir "$folder/debs.new"
    cp "$fetched"/var/cache/apt/archives/*.deb "$folder/debs.new"
    echo "$include" >"$folder/debs.new/include"
    mv -T "$folder/debs.new" "$folder/debs"
fi

rm -rf "$root" "$folder"/.made-*
mkdir "$root"
for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
# What the packages' own scripts would do.
for library in blas lapack; do
    [ ! -d "$root/usr/lib/$triplet/$library" ] || ln -sf "$library/lib$library.so.3" "$root/usr/lib/$triplet/"
done

# LiteRT reads what CPU it runs on from files, and must not find this machine's.
cores=$root/sys/devices/system/cpu
mkdir -p "$root/proc" "$cores"
for core in 0 1 2 3; do
    mkdir "$cores/cpu$core"
    printf 'processor\t: %d\nBogoMIPS\t: 38.40\nFeatures\t: fp asimd crc32 cpuid\nCPU implementer\t: 0x41\n' $core
    printf 'CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 4\n\n' $part
done >"$root/proc/cpuinfo"
for list in online possible present; do echo 0-3 >"$cores/$list"; done

# The board's python3, under whatever name an environment gives it: programs that start sys.executable start this.
# Programs that read that file (pip does, to learn what wheels fit) find the real one in the system.
rm "$python"
cat >"$python" <<EOF
#!/bin/sh
case \$0 in
"$python") ;;
*) [ -e "$root\$0" ] || { mkdir -p "$root\${0%/*}" && ln -sf $python.real "$root\$0"; } ;;
esac
exec $qemu -cpu $cpu -0 "\$0" -L $root $python.real "\$@"
EOF
chmod +x "$python"
ln "$root/usr/bin/python3.11" "$python.real"
touch "$stamp"
echo "$python"
