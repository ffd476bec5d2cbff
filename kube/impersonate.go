package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	authenticationv1 "k8s.io/api/authentication/v1"

	"countersign/action"
	"countersign/gate"
)

// Impersonate says how a cluster sees the principals in whose name requests are sent.
type Impersonate struct {
	// UsernamePrefix and GroupsPrefix stand before the names of users and groups, so
	// that nobody at an identity provider can choose a name that means something in
	// the cluster.
	UsernamePrefix, GroupsPrefix string
	// ServiceAccountIssuer is the issuer whose service accounts are the cluster's
	// own, and keep their names. Empty is none: one of another cluster must not be
	// taken for the one of the same name here.
	ServiceAccountIssuer string
	// Extra are what else the API server's audit log shows of a principal: ExtraOnBehalfOf,
	// ExtraClient, ExtraIssuer. The operation is there without it, as the Audit-ID.
	Extra []string
}

// What can be shown of a principal beside its name and groups.
const (
	ExtraOnBehalfOf = "on-behalf-of"
	ExtraClient     = "client"
	ExtraIssuer     = "issuer"
)

// extraPrefix stands before them, as Kubernetes wants it of keys that are not its own.
const extraPrefix = "countersign/"

// sender is in whose name a request is sent, and whether it has left.
type sender struct {
	// header is what shows the principal; empty when the server asks for itself.
	header http.Header
	// user is the principal's name in the cluster, empty for the server itself.
	user string
	mu   sync.Mutex
	left bool
}

// leaves notes that the request leaves, unless nobody waits for it any more.
func (s *sender) leaves(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = s.left || ctx.Err() == nil
	return ctx.Err() == nil
}

// stayed reports that no request has left, and none will when ctx has ended.
func (s *sender) stayed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.left
}

type senderKey struct{}

func senderOf(ctx context.Context) *sender {
	s, _ := ctx.Value(senderKey{}).(*sender)
	return s
}

// own marks what the server asks in its own name.
func own(ctx context.Context) context.Context { return context.WithValue(ctx, senderKey{}, &sender{}) }

// as marks what is sent in the name of a principal.
func (c *cluster) as(ctx context.Context, p *action.Principal) (context.Context, error) {
	s := &sender{}
	if c.impersonate != nil {
		if p == nil {
			return nil, errNobody
		}
		var err error
		if s.user, s.header, err = c.impersonate.headers(p); err != nil {
			return nil, &gate.ImpersonationError{Reason: fmt.Sprintf("cluster %s cannot be shown who you are: %v", c.name, err)}
		}
	}
	return context.WithValue(ctx, senderKey{}, s), nil
}

// errNobody is a mistake in this program, and never sent.
var errNobody = fmt.Errorf("%w: a request in nobody's name to a cluster that is to see the caller", gate.ErrNotSent)

// headers are those that show the principal to the API server (Kubernetes,
// "User impersonation"), which adds system:authenticated by itself.
func (i *Impersonate) headers(p *action.Principal) (user string, h http.Header, err error) {
	h = http.Header{}
	if i.ServiceAccountIssuer != "" && p.Issuer == i.ServiceAccountIssuer {
		// The name is that of the token and not what a claim was mapped to. The API
		// server gives it the groups that the account has.
		if user = p.Subject; !serviceAccount.MatchString(user) {
			return "", nil, fmt.Errorf("%.100q is no service account, and its issuer is to have nothing else", user)
		}
	} else {
		if user, err = name(i.UsernamePrefix, p.Username); err != nil {
			return "", nil, fmt.Errorf("your user name: %w", err)
		}
		for _, g := range p.Groups {
			group, err := name(i.GroupsPrefix, g)
			if err != nil {
				return "", nil, fmt.Errorf("a group of yours: %w", err)
			}
			h.Add(authenticationv1.ImpersonateGroupHeader, group)
		}
	}
	h.Set(authenticationv1.ImpersonateUserHeader, user)
	for _, key := range i.Extra {
		value := map[string]string{ExtraOnBehalfOf: p.OnBehalfOf, ExtraClient: p.Client, ExtraIssuer: p.Issuer}[key]
		if value == "" {
			continue
		}
		if err := plain(value); err != nil {
			return "", nil, fmt.Errorf("%s: %w", key, err)
		}
		h.Set(authenticationv1.ImpersonateUserExtraHeaderPrefix+url.PathEscape(extraPrefix+key), value)
	}
	return user, h, nil
}

// serviceAccount is the user name of one (k8s.io/apiserver, serviceaccount.SplitUsername).
var serviceAccount = regexp.MustCompile(`^system:serviceaccount:[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?:[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)

// reserved begin the names that have a meaning in a cluster without anybody there
// having given them one: Kubernetes' own, system:masters first of all, and those
// that kubeadm binds to cluster-admin.
var reserved = []string{"system:", "kubeadm:"}

// name is what a user or group from a token is called in the cluster.
func name(prefix, from string) (string, error) {
	if from == "" {
		return "", errors.New("it is empty")
	}
	name := prefix + from
	if err := plain(name); err != nil {
		return "", err
	}
	for _, begins := range reserved {
		if strings.HasPrefix(strings.ToLower(name), begins) {
			return "", fmt.Errorf("%.100q begins with %s, which no token may claim", name, begins)
		}
	}
	return name, nil
}

// plain refuses what would arrive as something else: white space at the ends of a
// header's value is cut off on its way, so that " system:masters" would lose it.
func plain(value string) error {
	odd := func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }
	if !utf8.ValidString(value) || strings.TrimSpace(value) != value || strings.ContainsFunc(value, odd) {
		return fmt.Errorf("%.100q has white space at an end, or characters that nobody sees", value)
	}
	return nil
}

// sending is around every connection to a cluster. It shows the principal, and
// lets nothing pass that is in nobody's name where the cluster is to see one: a
// request that was built in some other way is not sent as the server's own.
type sending struct {
	next         http.RoundTripper
	impersonates bool
}

// RoundTrip implements http.RoundTripper.
func (t *sending) RoundTrip(req *http.Request) (*http.Response, error) {
	s := senderOf(req.Context())
	if t.impersonates {
		if s == nil {
			drop(req)
			return nil, errNobody
		}
		req = req.Clone(req.Context())
		for name := range req.Header {
			if strings.HasPrefix(name, "Impersonate-") {
				delete(req.Header, name)
			}
		}
		for name, values := range s.header {
			req.Header[name] = slices.Clone(values)
		}
	}
	if s != nil && !s.leaves(req.Context()) {
		drop(req)
		return nil, fmt.Errorf("%w: %w", gate.ErrNotSent, req.Context().Err())
	}
	return t.next.RoundTrip(req)
}

// WrappedRoundTripper lets client-go find what is below.
func (t *sending) WrappedRoundTripper() http.RoundTripper { return t.next }

// drop closes the body of a request that is not sent, as http.RoundTripper demands.
func drop(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// asking sends all requests of a client in the server's own name.
type asking struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t asking) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.next.RoundTrip(req.WithContext(own(req.Context())))
}

// fault is what a request came to that failed: apiError, with what is known of how
// it was sent.
func fault(ctx context.Context, err error) error {
	err = apiError(err)
	s := senderOf(ctx)
	if err == nil || s == nil {
		return err
	}
	var refused *gate.APIError
	if !errors.As(err, &refused) {
		if s.stayed() && !errors.Is(err, gate.ErrNotSent) { // a credential that could not be had, say
			err = fmt.Errorf("%w: %w", gate.ErrNotSent, err)
		}
		return err
	}
	// k8s.io/apiserver, responsewriters.ForbiddenStatusError. A quota or a webhook
	// that refuses has the same code.
	if s.user != "" && refused.Code == http.StatusForbidden && strings.Contains(refused.Message, fmt.Sprintf(" is forbidden: User %q cannot ", s.user)) {
		named := *refused
		named.User = s.user
		return &named
	}
	return err
}
