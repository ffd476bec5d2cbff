package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
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
	// Audience is what its tokens have to be for; empty means that of all issuers.
	Audience string
	// CAFile holds the certificates to trust for this issuer, in PEM; empty
	// means the system's.
	CAFile string
	// Algorithms are the accepted signature algorithms. An algorithm that is
	// not in the list is refused, none and HMAC always.
	Algorithms []string
	// UsernameClaim and GroupsClaim name the claims that are read, also with dots
	// between the names of nested ones.
	UsernameClaim, GroupsClaim string
	// OnBehalfOfClaim names the claim that holds for whom an agent acts. Empty
	// means that of RFC 8693: when the token has act, sub is the person and
	// act.sub the agent.
	OnBehalfOfClaim string
	// Kubernetes says that the issuer is an API server's service-account
	// issuer: the groups are those that Kubernetes itself gives to the account.
	Kubernetes bool
	// UsernamePrefix and GroupsPrefix stand before what the token says, so that two
	// issuers cannot name the same user or group.
	UsernamePrefix, GroupsPrefix string
	// ClockSkew is how far the issuer's clock and this one may differ: by so much a
	// token is taken after its expiry, and before it begins. 0 is not at all.
	ClockSkew time.Duration
}

// maxToken bounds a token, in bytes, before anything is computed on it.
const maxToken = 16 << 10

// asymmetric are the algorithms that an issuer may be configured with.
var asymmetric = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

// Authenticator validates tokens for one audience of each issuer.
type Authenticator struct {
	// Log receives what an operator should know of issuers; slog's default when nil.
	Log *slog.Logger

	issuers  map[string]*issuer
	verified verified
	now      func() time.Time
}

type issuer struct {
	Issuer
	keys *keys
	// others are the issuers beside this one.
	others []Issuer
}

// New prepares the issuers; audience is that of those that have none of their own. It
// sends nothing: an issuer that is down at the
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
		config.Audience = cmp.Or(config.Audience, audience)
		others := slices.DeleteFunc(slices.Clone(issuers), func(other Issuer) bool { return other.URL == config.URL })
		a.issuers[config.URL] = &issuer{Issuer: config, others: others, keys: &keys{
			issuer: config.URL, client: client, now: func() time.Time { return a.now() }, log: a.log,
		}}
	}
	return a, nil
}

func (a *Authenticator) log() *slog.Logger {
	if a.Log == nil {
		return slog.Default()
	}
	return a.Log
}

// Unready says which issuers' tokens cannot be taken now, and why, by their address. It
// asks those whose keys are not known, all at once and not too often, so that an
// issuer that was down is found again before its next token.
func (a *Authenticator) Unready(ctx context.Context) map[string]error {
	var mu sync.Mutex
	var all sync.WaitGroup
	unready := map[string]error{}
	for name, i := range a.issuers {
		all.Go(func() {
			if _, err := i.keys.find(ctx, "", "", false); err != nil {
				mu.Lock()
				defer mu.Unlock()
				unready[name] = err
			}
		})
	}
	all.Wait()
	return unready
}

// Refused is a token that was not accepted. Its text is for the log; the
// caller is told nothing but that it was refused.
type Refused struct{ reason string }

func (e *Refused) Error() string { return e.reason }

func refuse(format string, args ...any) error {
	return &Refused{clipped(fmt.Errorf(format, args...)).Error()}
}

// Unavailable says that the issuer could not be asked for its keys, so that a
// token can be neither accepted nor refused for good.
type Unavailable struct{ err error }

func (e *Unavailable) Error() string { return "the issuer cannot be reached: " + e.err.Error() }
func (e *Unavailable) Unwrap() error { return e.err }

// Unavailable tells the front to answer "try again" instead of "refused".
func (e *Unavailable) Unavailable() bool { return true }

// Authenticate validates a token: signature by a known key of a trusted issuer,
// algorithm, audience, expiry, not-before, and a subject. For verifiedFor it takes
// the same token again, until it expires. Beside the principal it returns the token's
// scopes (RFC 8693, section 4.2): they say what this token is for, not who calls.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (action.Principal, []string, error) {
	if token == "" {
		return action.Principal{}, nil, refuse("no token")
	}
	if len(token) > maxToken {
		return action.Principal{}, nil, refuse("the token has %d bytes; at most %d are read", len(token), maxToken)
	}
	digest, now := sha256.Sum256([]byte(token)), a.now()
	if p, scopes, ok := a.verified.find(digest, now); ok {
		return p, scopes, nil
	}
	u, err := parse(token)
	if err != nil {
		return action.Principal{}, nil, err
	}
	name, _ := u.claims["iss"].(string)
	trusted, ok := a.issuers[name]
	if !ok {
		return action.Principal{}, nil, refuse("the token's issuer is not trusted: %.200q is none of those that are configured", name)
	}
	// The signature and the issuer are go-oidc's to check. It has no leeway for exp,
	// and one of its own for nbf, so times are checked below.
	signature := &signed{keys: trusted.keys, algorithms: trusted.Algorithms}
	valid, err := oidc.NewVerifier(trusted.URL, signature, &oidc.Config{
		ClientID: trusted.Audience, SupportedSigningAlgs: trusted.Algorithms, SkipExpiryCheck: true,
	}).Verify(ctx, token)
	if signature.err != nil {
		return action.Principal{}, nil, signature.err
	}
	if err != nil {
		return action.Principal{}, nil, refuse("%v", err)
	}
	var payload json.RawMessage
	if err := valid.Claims(&payload); err != nil {
		return action.Principal{}, nil, refuse("reading claims: %v", err)
	}
	claims, err := object(payload)
	if err != nil {
		return action.Principal{}, nil, refuse("the payload %v", err)
	}
	expiry, err := trusted.check(claims, now)
	if err != nil {
		return action.Principal{}, nil, err
	}
	p, err := trusted.principal(claims)
	if err != nil {
		return action.Principal{}, nil, err
	}
	scopes := scopesOf(valid)
	a.verified.keep(digest, p, scopes, expiry, now)
	return p, scopes, nil
}

// scopesOf reads the claims scope and scp, which issuers write as one text with
// spaces or as a list. What is neither gives no scope.
func scopesOf(token *oidc.IDToken) []string {
	var claims struct {
		Scope any `json:"scope"`
		Scp   any `json:"scp"`
	}
	if token.Claims(&claims) != nil {
		return nil
	}
	var scopes []string
	for _, claim := range []any{claims.Scope, claims.Scp} {
		switch v := claim.(type) {
		case string:
			scopes = append(scopes, strings.Fields(v)...)
		case []any:
			for _, item := range v {
				if s, ok := item.(string); ok {
					scopes = append(scopes, s)
				}
			}
		}
	}
	return scopes
}
