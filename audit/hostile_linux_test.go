package audit

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spent is the processor's time that this thread has taken: how busy the machine is
// otherwise does not count.
func spent(t *testing.T) time.Duration {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
		t.Fatal(err)
	}
	return time.Duration(at.Nano())
}

// Callers who are not known yet, and any pod's log, choose what is masked: twice
// the text must take about twice the processor's time. Measuring is rough, so what
// fails is measured again with more; a square fails the more.
func TestHostileText(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures times")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // so that nobody's rubbish is cleared meanwhile
	measure := func(fragment string, size, tries int) time.Duration {
		text := strings.Repeat(fragment, size/len(fragment)+1)[:size]
		best := time.Hour
		for range tries {
			start := spent(t)
			MaskText(text)
			best = min(best, spent(t)-start)
		}
		return best
	}
	check := func(name, fragment string, size int) {
		const most = 3.2
		var once, twice time.Duration
		for tries := range 5 {
			runtime.GC()
			once, twice = measure(fragment, size, tries+1), measure(fragment, 2*size, tries+1)
			if float64(twice) <= most*float64(once) {
				return
			}
			size *= 2
		}
		t.Errorf("%s: %v, and %v for twice the text", name, once, twice)
	}
	for name, fragment := range hostile() {
		check(name, fragment, 32<<10)
	}
	for _, word := range rules().words { // smaller, for they are many
		check(word+" and =", word+"=", 2<<10)
		check(word+" and :", word+":", 2<<10)
	}
}
