package rig

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// CPU is the processor time that a process has had, in steps of 10 ms; 0 where
// there is no /proc.
func CPU(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, can hold anything; utime and stime are the 12th and
	// 13th field behind it (proc_pid_stat(5)), in hundredths of a second.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

var resident = regexp.MustCompile(`(RssAnon|VmRSS):\s+(\d+) kB`)

// Memory is what a process has in memory, in MB: what it has allocated, and that
// with what it has mapped, such as the pages of its store that were read. 0 where
// there is no /proc.
func Memory(pid int) (anon, rss float64) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, m := range resident.FindAllSubmatch(status, -1) {
		kb, _ := strconv.ParseFloat(string(m[2]), 64)
		if string(m[1]) == "VmRSS" {
			rss = kb / 1024
		} else {
			anon = kb / 1024
		}
	}
	return anon, rss
}
