//go:build !linux

package main

import "syscall"

// childAttr makes a child the leader of its own process group, so that Ctrl-C in a
// terminal reaches only us and the order of stopping is ours. Only Linux can also end
// the children of a launcher that was killed with SIGKILL.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
