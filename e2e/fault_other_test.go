//go:build !linux

package e2e

import "errors"

var errLinux = errors.New("only Linux can")

func setFileLimit(int, uint64) error   { return errLinux }
func mount(string, string, bool) error { return errLinux }
func unmount(string) error             { return errLinux }
