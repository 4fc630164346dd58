package conntrack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// memInfo is getsockopt(SO_MEMINFO), which x/sys does not wrap: an array of u32
// (Linux 4.12 and later). It returns the number of bytes that the kernel wrote.
func memInfo(fd int, words *[16]uint32) (uint32, error) {
	size := uint32(unsafe.Sizeof(*words))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(words)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return size, nil
}
