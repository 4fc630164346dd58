# Becomes the init of a box, see Lab.Boot. It is the first process of a new pid
# namespace with mounts, host name and cgroup namespace of its own, in the
# network namespace of the node. From the environment:
#
#	BASE         the root file system, never changed
#	DIR          the box's directory, with the directories files and scratch in it
#	HIERARCHIES  the cgroup hierarchies to mount: NAME or NAME=OPTIONS ("." is
#	             the only one, of version 2)
#	SETUP        a script to run in the new root before systemd does
set -eu

# What the box writes is in memory: it ends with the last of its processes, and
# overlay would not take an overlay for its upper layer, which the machine's own
# root file system may be.
scratch=$DIR/scratch root=$DIR/scratch/root
mount -t tmpfs -o mode=755 tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/docker" "$scratch/containerd" "$root"
mount -t overlay -o "lowerdir=$DIR/files:$BASE,upperdir=$scratch/upper,workdir=$scratch/work" overlay "$root"
for daemon in docker containerd; do
	mkdir -p "$root/var/lib/$daemon"
	mount --bind "$scratch/$daemon" "$root/var/lib/$daemon"
done

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"

cgroup=$root/sys/fs/cgroup
case $HIERARCHIES in
.) mount -t cgroup2 cgroup2 "$cgroup" ;;
*)
	mount -t tmpfs -o mode=755 tmpfs "$cgroup"
	for h in $HIERARCHIES; do
		mkdir "$cgroup/${h%%=*}"
		case $h in
		unified) mount -t cgroup2 cgroup2 "$cgroup/unified" ;;
		*) mount -t cgroup -o "${h#*=}" cgroup "$cgroup/${h%%=*}" ;;
		esac
	done
	;;
esac

dev=$root/dev
mount -t tmpfs -o mode=755,nosuid tmpfs "$dev"
mkdir "$dev/pts" "$dev/shm"
mknod -m 666 "$dev/null" c 1 3
mknod -m 666 "$dev/zero" c 1 5
mknod -m 666 "$dev/full" c 1 7
mknod -m 666 "$dev/random" c 1 8
mknod -m 666 "$dev/urandom" c 1 9
mknod -m 644 "$dev/kmsg" c 1 11
mknod -m 666 "$dev/tty" c 5 0
mknod -m 666 "$dev/fuse" c 10 229
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$dev/pts"
mount -t tmpfs tmpfs "$dev/shm"
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
ln -s fd/0 "$dev/stdin"
ln -s fd/1 "$dev/stdout"
ln -s fd/2 "$dev/stderr"

chroot "$root" /bin/sh -euc "$SETUP"

hostname -F "$root/etc/hostname"
mkdir "$root/old"
cd "$root"
pivot_root . old
cd /
umount -l /old
rmdir /old
# Containers that want the mounts of their node need it shared.
mount --make-rshared /
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --log-target=journal
