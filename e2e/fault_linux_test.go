package e2e

import "golang.org/x/sys/unix"

// setFileLimit limits how large the files may become that a process writes.
func setFileLimit(pid int, size uint64) error {
	var now unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &now); err != nil {
		return err
	}
	return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: min(size, now.Max), Max: now.Max}, nil)
}

// mount mounts a tmpfs, or makes it read-only.
func mount(path, options string, readOnly bool) error {
	if readOnly {
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, options)
	}
	return unix.Mount("tmpfs", path, "tmpfs", 0, options)
}

func unmount(path string) error { return unix.Unmount(path, 0) }
