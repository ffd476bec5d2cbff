package identity

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"countersign/action"
)

// Issuer is one trusted OpenID Connect issuer.
type Issuer struct {
	// URL is the issuer exactly as its tokens' iss says it.
	URL string
	// CAFile holds the certificates to trust for this issuer, in PEM; empty
	// means the system's.
	CAFile string
	// Algorithms are the accepted signature algorithms. An algorithm that is
	// not in the list is refused, none and HMAC always.
	Algorithms []string
	// UsernameClaim and GroupsClaim name the claims that are read.
	UsernameClaim, GroupsClaim string
	// OnBehalfOfClaim names the claim that holds for whom an agent acts. Empty
	// means that of RFC 8693: when the token has act, sub is the person and
	// act.sub the agent.
	OnBehalfOfClaim string
	// Kubernetes says that the issuer is an API server's service-account
	// issuer: the groups are those that Kubernetes itself gives to the account.
	Kubernetes bool
}

// maxToken bounds a token, in bytes, before anything is computed on it.
const maxToken = 16 << 10

// asymmetric are the algorithms that an issuer may be configured with.
var asymmetric = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

// Authenticator validates tokens for one audience.
type Authenticator struct {
	issuers  map[string]*issuer
	verified verified
	now      func() time.Time
}

type issuer struct {
	Issuer
	audience string
	client   *http.Client

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier
	tried    time.Time
	lastErr  error
}

// retryEvery is how soon discovery is tried again after it failed.
const retryEvery = 5 * time.Second

// New prepares the issuers. It sends nothing: an issuer that is down at the
// start is asked when the first of its tokens comes.
func New(issuers []Issuer, audience string) (*Authenticator, error) {
	a := &Authenticator{issuers: map[string]*issuer{}, now: time.Now}
	for _, config := range issuers {
		client, err := httpClient(config.CAFile)
		if err != nil {
			return nil, fmt.Errorf("preparing issuer %s: %w", config.URL, err)
		}
		if len(config.Algorithms) == 0 {
			config.Algorithms = []string{oidc.RS256, oidc.ES256}
		}
		for _, algorithm := range config.Algorithms {
			if !slices.Contains(asymmetric, algorithm) {
				return nil, fmt.Errorf("preparing issuer %s: algorithm %q is not accepted; use one of %s", config.URL, algorithm, strings.Join(asymmetric, ", "))
			}
		}
		a.issuers[config.URL] = &issuer{Issuer: config, audience: audience, client: client}
	}
	return a, nil
}

func httpClient(caFile string) (*http.Client, error) {
	client := &http.Client{Timeout: 10 * time.Second}
	if caFile == "" {
		return client, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	client.Transport = transport
	return client, nil
}

// Refused is a token that was not accepted. Its text is for the log; the
// caller is told nothing but that it was refused.
type Refused struct{ reason string }

func (e *Refused) Error() string { return e.reason }

func refuse(format string, args ...any) error { return &Refused{fmt.Sprintf(format, args...)} }

// Unavailable says that the issuer could not be asked for its keys, so that a
// token can be neither accepted nor refused for good.
type Unavailable struct{ err error }

func (e *Unavailable) Error() string { return "the issuer cannot be reached: " + e.err.Error() }
func (e *Unavailable) Unwrap() error { return e.err }

// Unavailable tells the front to answer "try again" instead of "refused".
func (e *Unavailable) Unavailable() bool { return true }

// Authenticate validates a token: signature by a known key of a trusted issuer,
// algorithm, audience, expiry, not-before, and a subject. For verifiedFor it takes
// the same token again, until it expires.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (action.Principal, error) {
	if token == "" {
		return action.Principal{}, refuse("no token")
	}
	if len(token) > maxToken {
		return action.Principal{}, refuse("the token has %d bytes; at most %d are read", len(token), maxToken)
	}
	digest, now := sha256.Sum256([]byte(token)), a.now()
	if p, ok := a.verified.find(digest, now); ok {
		return p, nil
	}
	name, err := unverifiedIssuer(token)
	if err != nil {
		return action.Principal{}, err
	}
	trusted, ok := a.issuers[name]
	if !ok {
		return action.Principal{}, refuse("the token's issuer is not trusted")
	}
	verifier, err := trusted.ready(ctx)
	if err != nil {
		return action.Principal{}, err
	}
	valid, err := verifier.Verify(ctx, token)
	if err != nil && strings.Contains(err.Error(), "fetching keys") { // go-oidc has no type for it
		return action.Principal{}, &Unavailable{err}
	}
	if err != nil {
		return action.Principal{}, refuse("%v", err)
	}
	p, err := trusted.principal(valid)
	if err == nil {
		a.verified.keep(digest, p, valid.Expiry, now)
	}
	return p, err
}

// unverifiedIssuer reads iss only to choose the keys to verify with.
func unverifiedIssuer(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", refuse("not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", refuse("not a JWT: its payload is not base64url")
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", refuse("not a JWT: its payload is not JSON")
	}
	return claims.Issuer, nil
}

// ready discovers the issuer's keys when that has not been done.
func (i *issuer) ready(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.verifier != nil {
		return i.verifier, nil
	}
	if time.Since(i.tried) < retryEvery {
		return nil, &Unavailable{i.lastErr}
	}
	// The provider keeps the context for its later fetches of keys, so it must
	// not be that of one request.
	provider, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), i.client), i.URL)
	if err != nil {
		i.lastErr, i.tried = err, time.Now() // those who waited for this attempt do not make their own
		return nil, &Unavailable{err}
	}
	i.verifier = provider.Verifier(&oidc.Config{ClientID: i.audience, SupportedSigningAlgs: i.Algorithms})
	return i.verifier, nil
}

func (i *issuer) principal(token *oidc.IDToken) (action.Principal, error) {
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return action.Principal{}, refuse("reading claims: %v", err)
	}
	if token.Subject == "" {
		return action.Principal{}, refuse("the token has no sub")
	}
	p := action.Principal{Issuer: token.Issuer, Subject: token.Subject, Username: token.Subject, Groups: []string{}}
	if client, ok := claims["azp"].(string); ok {
		p.Client = client
	} else if client, ok := claims["client_id"].(string); ok {
		p.Client = client
	}
	if i.UsernameClaim != "" {
		username, ok := claims[i.UsernameClaim].(string)
		if !ok || username == "" {
			return action.Principal{}, refuse("the token has no claim %s", i.UsernameClaim)
		}
		p.Username = username
	}
	switch {
	case i.Kubernetes:
		groups, err := serviceAccountGroups(token.Subject)
		if err != nil {
			return action.Principal{}, err
		}
		p.Groups = groups
	case i.GroupsClaim != "":
		groups, err := stringList(claims[i.GroupsClaim])
		if err != nil {
			return action.Principal{}, refuse("claim %s: %v", i.GroupsClaim, err)
		}
		p.Groups = groups
	}
	return p, i.onBehalfOf(&p, claims)
}

// onBehalfOf reads for whom an agent acts.
func (i *issuer) onBehalfOf(p *action.Principal, claims map[string]any) error {
	if i.OnBehalfOfClaim != "" {
		person, ok := claims[i.OnBehalfOfClaim].(string)
		if !ok || person == "" {
			return refuse("the token has no claim %s", i.OnBehalfOfClaim)
		}
		p.OnBehalfOf = person
		return nil
	}
	if claims["act"] == nil {
		return nil
	}
	act, _ := claims["act"].(map[string]any)
	agent, ok := act["sub"].(string)
	if !ok || agent == "" {
		return refuse("the token's act has no sub")
	}
	p.OnBehalfOf, p.Client = p.Username, agent
	return nil
}

// serviceAccountGroups are those that the API server itself adds to a service
// account (Kubernetes, Authenticating, "Service account tokens").
func serviceAccountGroups(subject string) ([]string, error) {
	rest, ok := strings.CutPrefix(subject, "system:serviceaccount:")
	namespace, name, both := strings.Cut(rest, ":")
	if !ok || !both || namespace == "" || name == "" {
		return nil, refuse("the subject is not a service account")
	}
	return []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace}, nil
}

// stringList reads a groups claim: one text, or a list of texts. A claim that is
// configured and absent is refused: rules that deny by group would not match.
func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, errors.New("is missing")
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, len(v))
		for i, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, errors.New("holds something that is not text")
			}
			out[i] = s
		}
		return out, nil
	}
	return nil, errors.New("is neither text nor a list")
}
