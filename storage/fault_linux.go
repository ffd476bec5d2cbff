//go:build crash

package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// With the tag crash the system refuses to write, from a commit on: the kernel itself
// answers a system call of this process with an error (seccomp, no privilege needed),
// so that everything above it, bbolt included, meets what it would meet on a bad disk.
//
// COUNTERSIGN_FAULT is a commit as COUNTERSIGN_CRASH has it, a system call, which one
// of them is the first to fail, and the error: "before exec.outcome 1 fdatasync 2 EIO".
// Where COUNTERSIGN_FAULT_UNTIL names a file, calls succeed again once it is there.
func init() {
	words := strings.Fields(os.Getenv("COUNTERSIGN_FAULT"))
	if len(words) != 6 {
		return
	}
	call, known := map[string]uint32{"fdatasync": unix.SYS_FDATASYNC, "pwrite64": unix.SYS_PWRITE64, "ftruncate": unix.SYS_FTRUNCATE}[words[3]]
	first, err := strconv.Atoi(words[4])
	errno := 0
	for n := 1; n < 200; n++ {
		if unix.ErrnoName(unix.Errno(n)) == words[5] {
			errno = n
		}
	}
	if !known || err != nil || errno == 0 {
		panic("COUNTERSIGN_FAULT: " + strings.Join(words, " "))
	}
	crashpoint = at(words, func() {
		if err := fail(call, first, errno, os.Getenv("COUNTERSIGN_FAULT_UNTIL")); err != nil {
			panic(fmt.Errorf("COUNTERSIGN_FAULT: %w", err))
		}
	})
}

// fail has the kernel ask this process about each call, and answers with the error from
// the first one on that is to fail.
func fail(call uint32, first, errno int, until string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: call},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if e != 0 {
		return e
	}
	go func() {
		for n := 1; ; n++ {
			var asked [80]byte // struct seccomp_notif
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&asked))); e != 0 {
				if errors.Is(e, unix.EINTR) || errors.Is(e, unix.ENOENT) {
					n--
					continue
				}
				panic(e)
			}
			var answer [24]byte // struct seccomp_notif_resp: id, value, error, flags
			copy(answer[:8], asked[:8])
			_, err := os.Stat(until)
			if n >= first && err != nil {
				binary.NativeEndian.PutUint32(answer[16:], uint32(-errno))
			} else {
				binary.NativeEndian.PutUint32(answer[20:], unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
			}
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer))); e != 0 {
				n-- // a signal came between, and the call is made again
			}
		}
	}()
	return nil
}
