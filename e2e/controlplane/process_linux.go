package main

import "syscall"

// childAttr makes a child the leader of its own process group, so that Ctrl-C in a
// terminal reaches only us and the order of stopping is ours, and has the kernel kill it
// when we die without stopping it.
//
// The kernel takes "we" to be the thread that started the child: the starting goroutine
// must be locked to its thread and outlive the child.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
