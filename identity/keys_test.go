package identity

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// clock makes an authenticator's time go by.
func clock(a *Authenticator) func(time.Duration) {
	var later atomic.Int64
	start := time.Now()
	a.now = func() time.Time { return start.Add(time.Duration(later.Load())) }
	return func(d time.Duration) { later.Add(int64(d)) }
}

// long is a token for tests in which days go by.
func (p *idp) long(t *testing.T, kid string, key any) string {
	t.Helper()
	return sign(t, jose.RS256, jose.JSONWebKey{Key: key, KeyID: kid}, p.claims(map[string]any{"exp": time.Now().Add(1000 * time.Hour).Unix(), "jti": rand.Text()}), nil)
}

func unavailable(err error) bool {
	var u *Unavailable
	return errors.As(err, &u)
}

func refused(err error) bool {
	var r *Refused
	return errors.As(err, &r)
}

func TestClockSkew(t *testing.T) {
	p := start(t, httptest.NewServer)
	for _, skew := range []time.Duration{0, 30 * time.Second, 5 * time.Minute} {
		a := authenticator(t, Issuer{URL: p.URL, ClockSkew: skew})
		now := time.Now().Truncate(time.Second)
		a.now = func() time.Time { return now }
		for _, row := range []struct {
			claim string
			at    time.Duration
			taken bool
		}{
			{"exp", -skew, false}, {"exp", -skew + time.Second, true},
			{"nbf", skew, true}, {"nbf", skew + time.Second, false},
			{"iat", skew, true}, {"iat", skew + time.Second, false},
		} {
			_, _, err := a.Authenticate(t.Context(), p.token(t, map[string]any{"iat": now.Unix(), row.claim: now.Add(row.at).Unix(), "nbf2": row.at}))
			if (err == nil) != row.taken || err != nil && !refused(err) {
				t.Errorf("skew %s, %s at %s: %v", skew, row.claim, row.at, err)
			}
		}
		// What is remembered of a token ends with it, and not before.
		token := p.token(t, map[string]any{"iat": now.Unix(), "exp": now.Add(time.Second).Unix()})
		for _, row := range []struct {
			after time.Duration
			taken bool
		}{{0, true}, {min(skew, 29*time.Second), true}, {skew + time.Second, false}} {
			a.now = func() time.Time { return now.Add(row.after) }
			if _, _, err := a.Authenticate(t.Context(), token); (err == nil) != row.taken {
				t.Errorf("skew %s, %s later: %v", skew, row.after, err)
			}
		}
	}
}

// A key that the issuer has made since is asked for when a token names it; one that
// it took back is believed for keysFor and not longer.
func TestKeyRotation(t *testing.T) {
	p := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL})
	pass := clock(a)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
		t.Fatal(err)
	}
	second := newRSA(t)
	pass(keysEvery)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-2", second)); !refused(err) {
		t.Fatalf("a key that was never published: %v", err)
	}
	p.publish(second.Public(), "key-2")
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-2", second)); !refused(err) {
		t.Errorf("the issuer is asked again at once: %v", err)
	}
	pass(keysEvery)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-2", second)); err != nil {
		t.Errorf("the new key: %v", err)
	}
	p.mu.Lock()
	p.keys.Keys = p.keys.Keys[1:]
	p.mu.Unlock()
	pass(keysFor - time.Second)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
		t.Errorf("the issuer is asked all the time: %v", err)
	}
	pass(time.Second)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); !refused(err) {
		t.Errorf("the key that was taken back: %v", err)
	}
	// An issuer that reuses the name of a key, or names none.
	third := newRSA(t)
	p.mu.Lock()
	p.keys.Keys = nil
	p.mu.Unlock()
	p.publish(third.Public(), "key-2")
	pass(keysEvery)
	for _, kid := range []string{"key-2", ""} {
		if _, _, err := a.Authenticate(t.Context(), p.long(t, kid, third)); err != nil {
			t.Errorf("key %q: %v", kid, err)
		}
	}
	// One that lists no key has withdrawn all of them.
	p.mu.Lock()
	p.keys.Keys = []jose.JSONWebKey{}
	p.mu.Unlock()
	pass(keysFor)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-2", third)); !refused(err) {
		t.Errorf("no key is published any more: %v", err)
	}
}

// Tokens with invented keys, or without a signature that fits, make one look at the
// issuer in keysEvery, however many there are.
func TestUnknownKeys(t *testing.T) {
	p := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL})
	pass := clock(a)
	if _, _, err := a.Authenticate(t.Context(), p.token(t, nil)); err != nil {
		t.Fatal(err)
	}
	mallory := newRSA(t)
	for round := range 3 {
		pass(keysEvery)
		tokens := make([]string, 60)
		for i := range tokens {
			tokens[i] = p.long(t, []string{fmt.Sprint("invented-", i), "key-1", ""}[i%3], mallory)
		}
		var all sync.WaitGroup
		for _, token := range tokens {
			all.Go(func() {
				if _, _, err := a.Authenticate(t.Context(), token); !refused(err) {
					t.Errorf("%v", err)
				}
			})
		}
		all.Wait()
		if n := p.asks.Load(); n != int64(round)+2 {
			t.Errorf("round %d: the issuer was asked %d times", round, n)
		}
	}
}

// Known keys go on while the issuer is down, without waiting for it, for a day.
func TestOutage(t *testing.T) {
	p := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL})
	var log bytes.Buffer
	a.Log = slog.New(slog.NewJSONHandler(&log, nil))
	pass := clock(a)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
		t.Fatal(err)
	}
	p.lost.Store(true)
	pass(keysOutage - time.Second)
	for range 20 {
		if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
			t.Fatalf("a known key: %v", err)
		}
	}
	if n := p.asks.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times", n)
	}
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-2", newRSA(t))); !unavailable(err) {
		t.Errorf("an unknown key: %v; want Unavailable", err)
	}
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", newRSA(t))); !refused(err) {
		t.Errorf("a forged signature: %v", err)
	}
	pass(time.Second)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); !unavailable(err) {
		t.Errorf("a key that was known a day ago: %v", err)
	}
	if unready := a.Unready(t.Context()); unready[p.URL] == nil {
		t.Error("the issuer is ready")
	}
	p.lost.Store(false)
	pass(retryEvery)
	if unready := a.Unready(t.Context()); len(unready) != 0 {
		t.Errorf("%v", unready)
	}
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
		t.Errorf("it is there again: %v", err)
	}
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "those that are known are used") || !strings.Contains(text, "answers again") {
		t.Errorf("the log says:\n%s", text)
	}
}

// An issuer whose keys cannot be fetched says nothing about a token.
func TestKeysDown(t *testing.T) {
	p := start(t, httptest.NewServer)
	p.lost.Store(true)
	a := authenticator(t, Issuer{URL: p.URL})
	pass := clock(a)
	if _, _, err := a.Authenticate(t.Context(), p.token(t, nil)); !unavailable(err) {
		t.Errorf("%v; want Unavailable", err)
	}
	p.lost.Store(false)
	pass(retryEvery)
	if _, _, err := a.Authenticate(t.Context(), p.token(t, nil)); err != nil {
		t.Errorf("they are there again: %v", err)
	}
}

// odd is an issuer that says what a test wants it to.
func odd(t *testing.T, discovery, keys http.HandlerFunc) *idp {
	t.Helper()
	p := &idp{rsa: newRSA(t)}
	p.publish(p.rsa.Public(), "key-1")
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		if discovery != nil {
			discovery(w, r)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		if keys != nil {
			keys(w, r)
			return
		}
		json.NewEncoder(w).Encode(p.keys)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// Whatever an issuer says instead of its keys, it costs little and is told in few words.
func TestOddIssuers(t *testing.T) {
	big := func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"keys":[],"x":"`+strings.Repeat("x", 10<<20)+`"}`)
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		for chunk := []byte(strings.Repeat(" ", 1<<10)); r.Context().Err() == nil; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	bomb := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, strings.Repeat(" ", 10<<20))
		z.Close()
	}
	says := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
	}
	elsewhere := httptest.NewServer(says(`{"keys":[]}`))
	defer elsewhere.Close()
	many := `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},`, maxKeys+1), ",") + `]}`
	for _, row := range []struct {
		name            string
		discovery, keys http.HandlerFunc
		want            string
	}{
		{"discovery of 10 MB", big, nil, "reading its discovery document: unable to read response body: the document is larger than 1048576 bytes"},
		{"keys of 10 MB", nil, big, "reading its keys: the document is larger than 1048576 bytes"},
		{"endless discovery", endless, nil, "larger than 1048576 bytes"},
		{"endless keys", nil, endless, "larger than 1048576 bytes"},
		{"keys that unpack to 10 MB", nil, bomb, "larger than 1048576 bytes"},
		{"a long error", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("x", 100<<10), http.StatusBadGateway)
		}, nil, "502 Bad Gateway: xxx"},
		{"keys not found", nil, http.NotFound, "reading its keys: 404 Not Found"},
		{"another's discovery", says(`{"issuer":"https://other.example","jwks_uri":"https://other.example/keys"}`), nil, "did not match the issuer URL"},
		{"no address of keys", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"issuer":"http://%s"}`, r.Host) }, nil, `jwks_uri is ""`},
		{"keys in a file", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer":"http://%s","jwks_uri":"file:///etc/passwd"}`, r.Host)
		}, nil, `jwks_uri is "file:///etc/passwd"; an https address is expected`},
		{"a page", says("<html>"), nil, "failed to decode provider discovery object"},
		{"keys are a page", nil, says("<html>"), "not a set of keys"},
		{"keys are a list", nil, says("[]"), "not a set of keys"},
		{"keys are absent", nil, says("{}"), "not a set of keys: there is no list of them"},
		{"too many keys", nil, says(many), "there are 101 keys; at most 100 are taken"},
		{"discovery redirects away", http.RedirectHandler(elsewhere.URL, http.StatusFound).ServeHTTP, nil, "it redirects to another host"},
		{"keys redirect away", nil, http.RedirectHandler(elsewhere.URL, http.StatusFound).ServeHTTP, "it redirects to another host"},
		{"keys redirect in a circle", nil, http.RedirectHandler("/keys", http.StatusFound).ServeHTTP, "it redirects more than 3 times"},
		{"huge headers", nil, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 200<<10)) }, "exceeded"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := odd(t, row.discovery, row.keys)
			_, _, err := authenticator(t, Issuer{URL: p.URL}).Authenticate(t.Context(), p.token(t, nil))
			if !unavailable(err) || !strings.Contains(err.Error(), row.want) || len(err.Error()) > 500 {
				t.Errorf("%v; want %s", err, row.want)
			}
		})
	}
	t.Run("redirects on its own host", func(t *testing.T) {
		var p *idp
		p = odd(t, nil, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "" {
				http.Redirect(w, r, "/keys?v=2", http.StatusFound)
				return
			}
			json.NewEncoder(w).Encode(p.keys)
		})
		if _, _, err := authenticator(t, Issuer{URL: p.URL}).Authenticate(t.Context(), p.token(t, nil)); err != nil {
			t.Error(err)
		}
	})
}

// A slow issuer holds up its own tokens, for a bounded time, and nobody else's.
func TestSlowIssuer(t *testing.T) {
	release := make(chan struct{})
	var slow atomic.Bool
	var p *idp
	p = odd(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if slow.Load() {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		json.NewEncoder(w).Encode(p.keys)
	})
	t.Cleanup(func() { close(release) }) // before the server is closed
	quick := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL}, Issuer{URL: quick.URL})
	pass := clock(a)
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
		t.Fatal(err)
	}
	strange := newRSA(t)
	slow.Store(true)
	pass(keysFor)
	// Whoever is held up by the issuer is so until askFor is over, which is long.
	begun := time.Now()
	gone, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer leave()
	if _, _, err := a.Authenticate(gone, p.long(t, "key-2", strange)); !unavailable(err) {
		t.Errorf("a caller who went away: %v", err)
	}
	if _, _, err := a.Authenticate(t.Context(), quick.token(t, nil)); err != nil {
		t.Errorf("another issuer's: %v", err)
	}
	if d := time.Since(begun); d > askFor/2 {
		t.Errorf("they waited %s", d)
	}
	begun = time.Now()
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil {
		t.Errorf("a known key: %v", err)
	}
	if d := time.Since(begun); d > patience+askFor/2 {
		t.Errorf("a known key waited %s", d)
	}
	begun = time.Now()
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-2", strange)); !unavailable(err) {
		t.Errorf("an unknown key: %v", err)
	}
	if d := time.Since(begun); d > askFor+askFor/2 {
		t.Errorf("it took %s", d)
	}
	// Once it is known to be slow, a known key waits for it no more.
	pass(retryEvery)
	begun = time.Now()
	if _, _, err := a.Authenticate(t.Context(), p.long(t, "key-1", p.rsa)); err != nil || time.Since(begun) >= patience {
		t.Errorf("a known key waited %s: %v", time.Since(begun), err)
	}
}

// One signature has one spelling: the bits that base64 leaves over are zero.
func TestSpelling(t *testing.T) {
	p := start(t, httptest.NewServer)
	good := p.token(t, nil)
	last := len(good) - 1
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	twin := good[:last] + string(letters[strings.IndexByte(letters, good[last])+1])
	if _, _, err := authenticator(t, Issuer{URL: p.URL}).Authenticate(t.Context(), twin); !refused(err) {
		t.Errorf("%v", err)
	}
}

// Keys that cannot, or must not, verify a signature are left out, and the others work.
func TestUsableKeys(t *testing.T) {
	p := start(t, httptest.NewServer)
	elliptical, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small := &rsa.PublicKey{N: new(big.Int).Rsh(p.rsa.N, 1024), E: 65537}
	p.keys.Keys = append(p.keys.Keys,
		jose.JSONWebKey{Key: newRSA(t), KeyID: "private"},
		jose.JSONWebKey{Key: []byte("secret"), KeyID: "symmetric"},
		jose.JSONWebKey{Key: p.rsa.Public(), KeyID: "enc", Use: "enc"},
		jose.JSONWebKey{Key: p.rsa.Public(), KeyID: "other", Algorithm: "RS512"},
		jose.JSONWebKey{Key: small, KeyID: "small"},
		jose.JSONWebKey{Key: elliptical.Public(), KeyID: "ec"},
		jose.JSONWebKey{Key: edwards, KeyID: "ed"})
	a := authenticator(t, Issuer{URL: p.URL, Algorithms: []string{"RS256", "ES256", "EdDSA"}})
	for kid, row := range map[string]struct {
		algorithm jose.SignatureAlgorithm
		key       any
		taken     bool
	}{
		"key-1": {jose.RS256, p.rsa, true}, "ec": {jose.ES256, elliptical, true}, "ed": {jose.EdDSA, private, true},
		"private": {jose.RS256, p.rsa, false}, "enc": {jose.RS256, p.rsa, false}, "other": {jose.RS256, p.rsa, false}, "small": {jose.RS256, p.rsa, false},
	} {
		_, _, err := a.Authenticate(t.Context(), sign(t, row.algorithm, jose.JSONWebKey{Key: row.key, KeyID: kid}, p.claims(nil), nil))
		if (err == nil) != row.taken || err != nil && !refused(err) {
			t.Errorf("%s: %v", kid, err)
		}
	}
	for _, key := range a.issuers[p.URL].keys.known {
		if strings.Contains("private symmetric enc small", key.KeyID) {
			t.Errorf("%s is kept", key.KeyID)
		}
	}

	// Who has a good ES256 token can write a second one that is as good. It says the
	// same and is nobody else's; a signature of nothing is none.
	good := sign(t, jose.ES256, jose.JSONWebKey{Key: elliptical, KeyID: "ec"}, p.claims(nil), nil)
	cut := strings.LastIndexByte(good, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(good[cut:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	twin := append(bytes.Clone(signature[:32]), new(big.Int).Sub(elliptic.P256().Params().N, s).FillBytes(make([]byte, 32))...)
	first, _, err := a.Authenticate(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if second, _, err := a.Authenticate(t.Context(), good[:cut]+base64.RawURLEncoding.EncodeToString(twin)); err != nil || second.Key() != first.Key() {
		t.Errorf("%+v %v", second, err)
	}
}

// FuzzParse: whatever comes, a token is taken apart or refused, and what is taken has an issuer to look for.
func FuzzParse(f *testing.F) {
	raw := base64.RawURLEncoding.EncodeToString
	f.Add("", "", "")
	f.Add(`{"alg":"RS256"}`, `{"iss":"x"}`, "sig")
	f.Add(`{"alg":"RS256","typ":"at+jwt"}`, `{"iss":"x","iss":"y"}`, "sig")
	f.Add(`{"crit":["b64"],"b64":false}`, `[]`, "")
	f.Fuzz(func(t *testing.T, header, payload, signature string) {
		u, err := parse(raw([]byte(header)) + "." + raw([]byte(payload)) + "." + raw([]byte(signature)))
		if err != nil && !refused(err) || err == nil && (u.header == nil || u.claims == nil) {
			t.Errorf("%+v, %v", u, err)
		}
		parse(payload)
		at(u.claims, header)
	})
}
