package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/action"
	"countersign/gate"
)

// desk is where a minter's time, timers and tokens come from.
type desk struct {
	*minter
	mu     sync.Mutex
	time   time.Time
	due    time.Duration // of the latest timer
	run    func()
	minted int
	fails  error
	life   time.Duration
	hold   chan struct{}
}

func newDesk() *desk {
	d := &desk{time: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), life: time.Hour}
	d.minter = &minter{
		account: "agents/narrow", random: func() float64 { return 0.5 },
		now: func() time.Time {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.time
		},
		later: func(after time.Duration, f func()) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.due, d.run = after, f
		},
		mint: func(context.Context) (string, time.Time, error) {
			d.mu.Lock()
			hold := d.hold
			d.mu.Unlock()
			if hold != nil {
				<-hold
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.minted++
			if d.fails != nil {
				return "", time.Time{}, d.fails
			}
			return fmt.Sprintf("t%d", d.minted), d.time.Add(d.life), nil
		},
	}
	return d
}

func (d *desk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// ring lets the timer that is set go off, at its time, and waits for what it starts.
func (d *desk) ring() {
	d.mu.Lock()
	d.time = d.time.Add(d.due)
	run := d.run
	d.mu.Unlock()
	run()
	d.minter.mu.Lock()
	flight := d.flight
	d.minter.mu.Unlock()
	if flight != nil {
		<-flight
	}
}

func (d *desk) want(t *testing.T, what, token string) {
	t.Helper()
	got, err := d.get(t.Context())
	if err != nil {
		got = err.Error()
		if !errors.Is(err, gate.ErrNotSent) {
			t.Errorf("%s: %v is not known to be not sent", what, err)
		}
	}
	if got != token {
		t.Errorf("%s: %q; want %q", what, got, token)
	}
}

// A token is replaced in the background before it expires; where that fails the old
// one is used to its end, and the next attempt comes, ever less often.
func TestTokenRenewal(t *testing.T) {
	d := newDesk()
	d.want(t, "the first", "t1")
	d.want(t, "again", "t1")
	if d.minted != 1 || d.due != 45*time.Minute*9/10 {
		t.Errorf("%d minted, the next after %s", d.minted, d.due)
	}
	d.ring()
	d.want(t, "renewed", "t2")

	d.set(func() { d.fails = &gate.APIError{Code: 503, Message: "out of order"} })
	d.ring()
	var waits []time.Duration
	for range 7 {
		waits = append(waits, d.due)
		d.ring()
	}
	if got, want := fmt.Sprint(waits), "[4.5s 9s 18s 36s 54s 54s 54s]"; got != want {
		t.Errorf("attempts after %s; want %s", got, want)
	}
	d.want(t, "while it cannot be renewed", "t2")
	if _, failed := d.state(); failed == nil {
		t.Error("status does not know of it")
	}
	expires, _ := d.state()
	d.set(func() { d.time = expires })
	const gone = "not sent: there is no token for service account agents/narrow: out of order"
	d.want(t, "when it has expired", gone)
	before := d.minted
	d.want(t, "at once again", gone)
	if d.minted != before {
		t.Errorf("calls made %d requests within a moment", d.minted-before)
	}
	_, err := d.get(t.Context())
	var refused *gate.APIError
	if errors.As(err, &refused) {
		t.Error("what the API server said of the token is taken for its word on the call")
	}
	d.set(func() { d.fails, d.time = nil, d.time.Add(time.Second) })
	d.want(t, "when it is there again", fmt.Sprintf("t%d", before+1))
}

// However many calls wait, one request is made, and each gives up in its own time.
func TestTokenOneRequest(t *testing.T) {
	d := newDesk()
	d.hold = make(chan struct{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.get(ended); !errors.Is(err, gate.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("a call that ends: %v", err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { d.want(t, "at once", "t1") })
	}
	close(d.hold)
	all.Wait()
	if d.minted != 1 {
		t.Errorf("%d were minted", d.minted)
	}
}

// A token that the API server refuses is replaced, unless it is a fresh one.
func TestTokenRefused(t *testing.T) {
	d := newDesk()
	d.want(t, "the first", "t1")
	d.refused("t1")
	d.want(t, "a fresh one", "t1")
	d.set(func() { d.time = d.time.Add(time.Minute) })
	d.refused("t0")
	d.want(t, "another", "t1")
	d.refused("t1")
	d.want(t, "an old one", "t2")
	d.set(func() { d.life = -time.Second; d.time = d.time.Add(time.Minute) })
	d.refused("t2")
	d.want(t, "one that is over", "not sent: there is no token for service account agents/narrow: the token that the API server gave has expired; is the clock right?")
}

// The credential asks for tokens, in nobody's name, and the token does all else;
// neither is sent where the other should be.
func TestTokenActs(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	broken := false
	url, ca := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		seen = append(seen, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Impersonate-User"), body)))
		w.Header().Set("Content-Type", "application/json")
		switch {
		case !strings.HasSuffix(r.URL.Path, "/token"):
			io.WriteString(w, `{}`)
		case broken:
			status(w, http.StatusForbidden, "Forbidden", `serviceaccounts "narrow" is forbidden`)
		default:
			fmt.Fprintf(w, `{"status":{"token":"minted","expirationTimestamp":%q}}`, time.Now().Add(time.Hour).Format(time.RFC3339))
		}
	})
	config := Config{Name: "c", Kubeconfig: kubeconfig(t, t.TempDir(), url, ca, "{token: broad}"), ServiceAccount: "agents/narrow", Impersonate: &Impersonate{UsernamePrefix: "idp:"}}
	clusters, err := New([]Config{config}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := get(t, clusters); err != nil {
			t.Fatal(err)
		}
	}
	const read = "GET /api/v1/namespaces/shop/pods/web Bearer minted idp:alice"
	want := []string{
		`POST /api/v1/namespaces/agents/serviceaccounts/narrow/token Bearer broad  {"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","metadata":{},"spec":{"audiences":null,"expirationSeconds":3600,"boundObjectRef":null},"status":{"expirationTimestamp":null,"token":""}}`,
		read, read,
	}
	same := func(what string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		got := strings.Join(seen, "\n")
		// The request's body is in canonical order.
		if len(seen) != len(want) || !strings.HasPrefix(seen[0], want[0][:strings.Index(want[0], "{")]) || !strings.Contains(seen[0], `"expirationSeconds":3600`) || strings.Join(seen[1:], "\n") != strings.Join(want[1:], "\n") {
			t.Errorf("%s: the API server saw\n%s\nwant\n%s", what, got, strings.Join(want, "\n"))
		}
		seen = nil
	}
	same("with a token")
	state := clusters.Status(t.Context())[0]
	if !strings.HasPrefix(state.Credential, "service account agents/narrow, token until ") || !strings.HasSuffix(state.Credential, ", asked for with kubeconfig user bea, token") || state.Expires.IsZero() ||
		strings.Contains(fmt.Sprint(state), "minted") || strings.Contains(fmt.Sprint(state), "broad") {
		t.Errorf("status: %+v", state)
	}

	// Where there is none, nothing is sent, not even a change.
	broken = true
	if clusters, err = New([]Config{config}, "test", time.Minute); err != nil {
		t.Fatal(err)
	}
	seen = nil
	patch := one(action.Patch)
	patch.Body, patch.Options.PatchType = map[string]any{}, action.MergePatch
	_, err = clusters.Execute(t.Context(), &alice, patch, "op.1", gate.Live{})
	var refused *gate.APIError
	if !errors.Is(err, gate.ErrNotSent) || errors.As(err, &refused) || !strings.Contains(err.Error(), `serviceaccounts "narrow" is forbidden`) {
		t.Errorf("without a token: %v", err)
	}
	want = want[:1]
	same("without a token")
	if state := clusters.Status(t.Context())[0]; state.Error == "" || !strings.Contains(state.Credential, "token not yet there") {
		t.Errorf("status without a token: %+v", state)
	}
}
