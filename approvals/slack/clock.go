package slack

import (
	"net/http"
	"sync"
	"time"
)

// slackClock is the way to Slack. It keeps Slack's time, as the Date of answers has it:
// messages are found by it, and this machine's clock can be wrong, or be stepped.
type slackClock struct {
	mu         sync.Mutex
	said, when time.Time
}

// RoundTrip implements http.RoundTripper.
func (c *slackClock) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if said, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.said, c.when = said, time.Now()
	}
	return resp, nil
}

// now is Slack's time, to the second or two; ours before Slack has answered.
func (c *slackClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said.IsZero() {
		return time.Now()
	}
	return c.said.Add(time.Since(c.when)) // which goes by the monotonic clock
}
