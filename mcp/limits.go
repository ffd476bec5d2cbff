package mcp

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// buckets are token buckets, one for each key. Those that are full again are
// forgotten: a new one is no different.
type buckets struct {
	perSecond rate.Limit
	burst     int

	mu    sync.Mutex
	by    map[string]*rate.Limiter
	swept time.Time
	// others is for those that come while as many as may be are known.
	others *rate.Limiter
}

// maxBuckets bounds how many callers are told apart.
const maxBuckets = 10_000

func newBuckets(perSecond, burst int) *buckets {
	return &buckets{
		perSecond: rate.Limit(perSecond), burst: burst,
		by: map[string]*rate.Limiter{}, others: rate.NewLimiter(rate.Limit(perSecond), burst),
	}
}

// take takes one from the bucket of a key, or says how long until there is one.
func (b *buckets) take(key string) (wait time.Duration) {
	now := time.Now()
	r := b.bucket(key, now).ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func (b *buckets) bucket(key string, now time.Time) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.by[key]; l != nil {
		return l
	}
	if len(b.by) >= maxBuckets && now.Sub(b.swept) > time.Second {
		b.swept = now
		for key, l := range b.by {
			if l.TokensAt(now) >= float64(b.burst) {
				delete(b.by, key)
			}
		}
	}
	if len(b.by) >= maxBuckets {
		return b.others
	}
	l := rate.NewLimiter(b.perSecond, b.burst)
	b.by[key] = l
	return l
}

// places counts the requests of each principal that are being served.
type places struct {
	most int

	mu sync.Mutex
	by map[string]int
}

const (
	// maxPlaces is how many of one principal may be served at once: a tenth of all
	// connections.
	maxPlaces = maxConnections / 10
	// maxLarge is how many of them may have bodies of more than maxOther.
	maxLarge = 10
)

// enter counts one more, if there may be one.
func (p *places) enter(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[key] >= p.most {
		return false
	}
	p.by[key]++
	return true
}

// leave counts one less; of an empty key, which none was counted for, nothing.
func (p *places) leave(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[key]--; p.by[key] <= 0 {
		delete(p.by, key)
	}
}

// networkOf is what counts as one address: of IPv6, whoever has one has a whole /64.
func networkOf(ip string) string {
	address, err := netip.ParseAddr(ip)
	if err != nil || address.Unmap().Is4() {
		return ip
	}
	network, err := address.WithZone("").Prefix(64)
	if err != nil {
		return ip
	}
	return network.String()
}

// running counts what runs, so that a server that stops can let it finish.
type running struct {
	mu       sync.Mutex
	n        int
	stopping bool
	idle     chan struct{} // closed once nothing runs and nothing more begins
}

// enter reports whether one more may begin.
func (r *running) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return false
	}
	r.n++
	return true
}

func (r *running) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n--; r.n == 0 && r.stopping {
		close(r.idle)
	}
}

// stop lets nothing more begin, and returns what is closed when nothing runs.
func (r *running) stop() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopping {
		r.stopping, r.idle = true, make(chan struct{})
		if r.n == 0 {
			close(r.idle)
		}
	}
	return r.idle
}

func (r *running) stopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopping
}
