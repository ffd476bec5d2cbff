package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"countersign/action"
	"countersign/gate"
)

const (
	// tokenFor is for how long a token is asked for. The API server may give another time.
	tokenFor = time.Hour
	// mintTimeout bounds one request for a token.
	mintTimeout = 10 * time.Second
	// mintAgain is how long to wait after a failure, doubled up to mintAtMost.
	mintAgain  = 5 * time.Second
	mintAtMost = time.Minute
	// youngToken is not replaced because an API server refuses it: the next one
	// would fare the same.
	youngToken = 10 * time.Second
)

// minter keeps a short-lived token of a service account (TokenRequest). It fetches
// the next one in the background when most of the time of this one is over, so that
// no call waits for it; where that fails, this one is used until it expires.
type minter struct {
	account string // namespace/name
	mint    func(ctx context.Context) (token string, expires time.Time, err error)
	now     func() time.Time
	// later runs f once in a while, random is from 0 to 1.
	later  func(d time.Duration, f func())
	random func() float64

	mu      sync.Mutex
	token   string
	minted  time.Time
	expires time.Time
	failed  error     // why the last attempt failed
	next    time.Time // not before which another is made
	wait    time.Duration
	flight  chan struct{} // closed when the attempt that runs is over
	planned int           // counts the attempts that were planned: only the latest is made
}

// newMinter mints with the credential of config.
func newMinter(account string, config *rest.Config, now func() time.Time) (*minter, error) {
	if now == nil {
		now = time.Now
	}
	client, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		return nil, err
	}
	namespace, name, _ := strings.Cut(account, "/")
	seconds := int64(tokenFor / time.Second)
	body, err := action.Canonical(authenticationv1.TokenRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		Spec:     authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds},
	})
	if err != nil {
		return nil, err
	}
	return &minter{
		account: account, now: now, random: rand.Float64,
		later: func(d time.Duration, f func()) { time.AfterFunc(d, f) },
		mint: func(ctx context.Context) (string, time.Time, error) {
			result := client.Post().AbsPath("/api/v1/namespaces", namespace, "serviceaccounts", name, "token").
				SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).Do(ctx)
			if err := result.Error(); err != nil {
				return "", time.Time{}, err
			}
			answer, err := result.Raw()
			if err != nil {
				return "", time.Time{}, err
			}
			var given authenticationv1.TokenRequest
			if err := json.Unmarshal(answer, &given); err != nil || given.Status.Token == "" {
				return "", time.Time{}, errors.New("the API server's answer holds no token")
			}
			return given.Status.Token, given.Status.ExpirationTimestamp.Time, nil
		},
	}, nil
}

// get gives the token, and waits for one only where there is none that holds.
func (m *minter) get(ctx context.Context) (string, error) {
	for {
		m.mu.Lock()
		now := m.now()
		if m.token != "" && now.Before(m.expires) {
			defer m.mu.Unlock()
			return m.token, nil
		}
		if m.flight == nil && now.Before(m.next) {
			defer m.mu.Unlock()
			// Not %w: what the API server said of this request is not about the caller's.
			return "", fmt.Errorf("%w: there is no token for service account %s: %s", gate.ErrNotSent, m.account, m.failed.Error())
		}
		flight := m.begin()
		m.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
			return "", fmt.Errorf("%w: waiting for a token for service account %s: %w", gate.ErrNotSent, m.account, ctx.Err())
		}
	}
}

// begin starts an attempt where none runs. The caller holds mu.
func (m *minter) begin() <-chan struct{} {
	if m.flight == nil {
		m.flight = make(chan struct{})
		go m.attempt(m.flight)
	}
	return m.flight
}

// attempt fetches a token, and sees to it that there is a next attempt.
func (m *minter) attempt(flight chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), mintTimeout)
	defer cancel()
	token, expires, err := m.mint(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	defer close(flight)
	m.flight = nil
	now := m.now()
	life := expires.Sub(now)
	if err == nil && life <= 0 {
		err = errors.New("the token that the API server gave has expired; is the clock right?")
	}
	if err != nil {
		m.failed, m.wait = err, min(max(2*m.wait, mintAgain), mintAtMost)
		// Where no token holds, a call may try sooner than the next attempt.
		m.next = now.Add(time.Second)
		m.renewIn(spread(m.wait, m.random()))
		return
	}
	m.token, m.minted, m.expires = token, now, expires
	m.failed, m.wait, m.next = nil, 0, time.Time{}
	m.renewIn(spread(life*3/4, m.random()))
}

// renewIn makes an attempt in a while, and none that was planned before. The caller
// holds mu.
func (m *minter) renewIn(d time.Duration) {
	m.planned++
	plan := m.planned
	m.later(d, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.planned == plan {
			m.begin()
		}
	})
}

// spread is d or up to a fifth less, so that servers that started together do not
// ask together.
func spread(d time.Duration, random float64) time.Duration {
	return d - time.Duration(random*float64(d)/5)
}

// refused forgets a token that the API server does not take any more, as when its
// service account was made anew.
func (m *minter) refused(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.token == token && m.now().Sub(m.minted) >= youngToken {
		m.token = ""
	}
}

// state is until when the token holds, and why the latest attempt failed.
func (m *minter) state() (expires time.Time, failed error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.token != "" {
		expires = m.expires
	}
	return expires, m.failed
}

// bearing gives every request the token.
type bearing struct {
	next http.RoundTripper
	*minter
}

// RoundTrip implements http.RoundTripper.
func (t bearing) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := t.get(req.Context())
	if err != nil {
		drop(req)
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := t.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		t.refused(token)
	}
	return resp, err
}

// WrappedRoundTripper lets client-go find what is below.
func (t bearing) WrappedRoundTripper() http.RoundTripper { return t.next }
