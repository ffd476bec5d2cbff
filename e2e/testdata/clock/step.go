// This file is put into package time when the server of TestChaos is built, so that the
// wall clock of the running process can be stepped, and nothing else of the machine's.
package time

import (
	"syscall"
	"unsafe"
)

// stepped is by how many seconds the clock is off: the first 8 bytes of the file that
// COUNTERSIGN_CLOCK names, which another process writes.
var stepped = func() *int64 {
	name, _ := syscall.Getenv("COUNTERSIGN_CLOCK")
	file, err := syscall.Open(name, syscall.O_RDONLY, 0)
	if err != nil {
		return new(int64)
	}
	defer syscall.Close(file)
	page, err := syscall.Mmap(file, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("mapping the clock: " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&page[0]))
}()

// steppedNow takes the place of runtimeNow in Now. What runs, time limits and timers,
// goes by the monotonic clock, which never steps.
func steppedNow() (sec int64, nsec int32, mono int64) {
	sec, nsec, mono = runtimeNow()
	return sec + *stepped, nsec, mono
}
