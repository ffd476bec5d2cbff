package identity

import (
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"countersign/action"
)

const (
	// verifiedFor is how long a token is taken for good without another look at its
	// signature, and so how long one can outlive the key that signed it.
	verifiedFor = 30 * time.Second
	// maxVerified bounds how many tokens are known at once.
	maxVerified = 1024
)

// verified are the tokens that were verified a moment ago: an agent sends the same
// one with each of its calls. It knows them by a digest, and holds none.
type verified struct {
	mu     sync.Mutex
	tokens map[[sha256.Size]byte]known
}

type known struct {
	principal action.Principal
	scopes    []string
	until     time.Time
}

// find returns whose token it is and its scopes, if that is known.
func (v *verified) find(digest [sha256.Size]byte, now time.Time) (action.Principal, []string, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k, ok := v.tokens[digest]
	if !ok || !now.Before(k.until) {
		return action.Principal{}, nil, false
	}
	p := k.principal
	p.Groups = slices.Clone(p.Groups)
	return p, k.scopes, true
}

// keep remembers whose token it is: not beyond its expiry.
func (v *verified) keep(digest [sha256.Size]byte, p action.Principal, scopes []string, expiry, now time.Time) {
	until := now.Add(verifiedFor)
	if expiry.Before(until) {
		until = expiry
	}
	p.Groups = slices.Clone(p.Groups)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tokens == nil || len(v.tokens) >= maxVerified { // those in use come back with their next call
		v.tokens = map[[sha256.Size]byte]known{}
	}
	v.tokens[digest] = known{p, scopes, until}
}
