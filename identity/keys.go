package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	// keysFor is how old an issuer's keys become before it is asked again, and so
	// how long a key that it has withdrawn is still believed while it answers.
	keysFor = 5 * time.Minute
	// keysOutage is how long known keys are believed while it does not answer.
	keysOutage = 24 * time.Hour
	// keysEvery is how soon an issuer that answered is asked again for a key that
	// it did not have: tokens with invented keys cost it no more than that.
	keysEvery = 10 * time.Second
	// retryEvery is how soon it is asked again after it did not answer.
	retryEvery = 5 * time.Second
	// askFor bounds one look at an issuer: discovery and keys.
	askFor = 10 * time.Second
	// patience is how long a token whose key is known waits for a newer look.
	patience = 2 * time.Second
	// maxDocument bounds each of an issuer's documents, in bytes.
	maxDocument = 1 << 20
	// maxKeys bounds the keys of an issuer: a token that names none is tried with each.
	maxKeys = 100
)

// keys are those of one issuer. go-oidc's own RemoteKeySet asks the issuer for each
// token that does not verify, and never for a key that it has already: that is a
// storm for whoever invents tokens, and no end for a key that was withdrawn.
type keys struct {
	issuer string
	client *http.Client
	now    func() time.Time
	log    func() *slog.Logger

	mu      sync.Mutex
	known   []jose.JSONWebKey
	fetched time.Time     // when known were got
	tried   time.Time     // when the latest look ended
	err     error         // how it failed
	running chan struct{} // closed when the look that is under way ends
}

// find returns the issuer's keys of an id (of any, when that is empty) for an
// algorithm. It asks the issuer when it has none, when they are old, and when they
// are wanted again because none of them fitted: one look at a time, for all who wait.
func (k *keys) find(ctx context.Context, id, algorithm string, again bool) ([]jose.JSONWebKey, error) {
	k.mu.Lock()
	have, now := k.match(id, algorithm), k.now()
	if !again && len(have) > 0 && now.Sub(k.fetched) < keysFor {
		defer k.mu.Unlock()
		return have, nil
	}
	pause := keysEvery
	if k.err != nil {
		pause = retryEvery
	}
	if k.running == nil && now.Sub(k.tried) >= pause {
		k.running = make(chan struct{})
		go k.look(k.running)
	}
	running, wait := k.running, askFor
	if len(have) > 0 {
		wait = patience
		if k.err != nil { // an issuer that is down must not slow down those whose key is known
			wait = 0
		}
	}
	k.mu.Unlock()

	if running != nil && wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-running:
		case <-timer.C:
		case <-ctx.Done():
			return nil, &Unavailable{ctx.Err()}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	have = k.match(id, algorithm)
	switch {
	case len(have) > 0:
		return have, nil
	case k.err != nil:
		return nil, &Unavailable{k.err}
	case k.fetched.IsZero() || k.running == running && running != nil:
		return nil, &Unavailable{errors.New("it is slow")}
	case now.Sub(k.fetched) >= keysOutage:
		return nil, &Unavailable{errors.New("its keys are too old")}
	}
	return nil, nil
}

// match returns the keys that may verify such a token, none of them too old.
func (k *keys) match(id, algorithm string) (out []jose.JSONWebKey) {
	if k.fetched.IsZero() || k.now().Sub(k.fetched) >= keysOutage {
		return nil
	}
	for _, key := range k.known {
		if (id == "" || key.KeyID == id) && (key.Algorithm == "" || algorithm == "" || key.Algorithm == algorithm) {
			out = append(out, key)
		}
	}
	return out
}

// look asks the issuer once. It is nobody's request, so that no caller who goes
// away takes the answer from the others.
func (k *keys) look(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), askFor)
	defer cancel()
	known, err := k.ask(ctx)

	k.mu.Lock()
	before, first := k.err, k.tried.IsZero()
	k.tried, k.err, k.running = k.now(), err, nil
	if err == nil {
		k.known, k.fetched = known, k.tried
	}
	until := k.fetched.Add(keysOutage)
	k.mu.Unlock()
	defer close(done)
	switch {
	case err != nil && (first || before == nil) && until.After(k.now()):
		k.log().Warn("issuer cannot be asked for its keys; those that are known are used", "issuer", k.issuer, "until", until, "err", err)
	case err != nil && (first || before == nil):
		k.log().Error("issuer cannot be asked for its keys; its tokens are not taken", "issuer", k.issuer, "err", err)
	case err == nil && before != nil:
		k.log().Info("issuer answers again", "issuer", k.issuer)
	}
}

// ask reads the issuer's discovery document and its keys.
func (k *keys) ask(ctx context.Context) ([]jose.JSONWebKey, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, k.client), k.issuer)
	if err != nil {
		return nil, fmt.Errorf("reading its discovery document: %w", clipped(err))
	}
	var document struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, fmt.Errorf("reading its discovery document: %w", clipped(err))
	}
	address, err := url.Parse(document.Keys)
	if err != nil || address.Host == "" || address.Scheme != "https" && !strings.HasPrefix(k.issuer, address.Scheme+"://") {
		return nil, fmt.Errorf("reading its discovery document: jwks_uri is %.200q; an https address is expected", document.Keys)
	}
	known, err := k.askKeys(ctx, document.Keys)
	if err != nil {
		return nil, fmt.Errorf("reading its keys: %w", clipped(err))
	}
	return known, nil
}

func (k *keys) askKeys(ctx context.Context, address string) ([]jose.JSONWebKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, data)
	}
	// An issuer that lists no key has withdrawn them; one that lists nothing is broken.
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("not a set of keys: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New("not a set of keys: there is no list of them")
	}
	var known []jose.JSONWebKey
	for _, raw := range *set.Keys {
		if key, ok := usable(raw); ok {
			known = append(known, key)
		}
	}
	if len(known) > maxKeys {
		return nil, fmt.Errorf("there are %d keys; at most %d are taken", len(known), maxKeys)
	}
	return known, nil
}

// usable reads a key. One for something else, of a kind that is not known, private,
// or of a size that is not safe is left out, and the others are taken (RFC 7517, section 5).
func usable(raw json.RawMessage) (key jose.JSONWebKey, ok bool) {
	if json.Unmarshal(raw, &key) != nil || !key.Valid() || key.Use != "" && key.Use != "sig" {
		return key, false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return key, public.N.BitLen() >= 2048 && public.N.BitLen() <= 16384
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return key, true
	}
	return key, false
}

// signed verifies the signature of one token for go-oidc, whose errors lose their
// type on the way: err is why the keys could not be had.
type signed struct {
	keys       *keys
	algorithms []string
	err        error
}

// VerifySignature implements oidc.KeySet. What no known key verifies is tried once
// more with what the issuer says now, for issuers that name their keys badly.
func (s *signed) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	allowed := make([]jose.SignatureAlgorithm, len(s.algorithms))
	for i, algorithm := range s.algorithms {
		allowed[i] = jose.SignatureAlgorithm(algorithm)
	}
	jws, err := jose.ParseSignedCompact(token, allowed)
	if err != nil {
		return nil, err
	}
	header := jws.Signatures[0].Header
	for _, again := range []bool{false, true} {
		known, err := s.keys.find(ctx, header.KeyID, header.Algorithm, again)
		if err != nil {
			s.err = err
			return nil, err
		}
		if len(known) == 0 {
			return nil, fmt.Errorf("the issuer has no key %.100q for %s", header.KeyID, header.Algorithm)
		}
		for _, key := range known {
			if payload, err := jws.Verify(key.Key); err == nil {
				return payload, nil
			}
		}
	}
	return nil, errors.New("no key of the issuer made it")
}

// httpClient reaches an issuer, within bounds: what it says is read before anything
// is known of the caller.
func httpClient(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{
		Transport: bounded{transport},
		Timeout:   askFor,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Scheme != via[0].URL.Scheme || req.URL.Host != via[0].URL.Host {
				return fmt.Errorf("it redirects to another host, %.100q", req.URL.Host)
			}
			if len(via) > 3 {
				return errors.New("it redirects more than 3 times")
			}
			return nil
		},
	}, nil
}

// bounded lets through maxDocument bytes of each answer, as they are once unpacked.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{resp.Body, maxDocument}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		b.left = 0
		return 0, fmt.Errorf("the document is larger than %d bytes", maxDocument)
	}
	return n, err
}

// clipped bounds an error's text: libraries quote what an issuer said.
func clipped(err error) error {
	const most = 300
	if text := err.Error(); len(text) > most {
		return errors.New(strings.ToValidUTF8(text[:most], "") + "...")
	}
	return err
}
