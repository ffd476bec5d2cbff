package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"countersign/action"
	"countersign/audit"
	"countersign/gate"
)

// Status is how one cluster is, and with what credential it is asked. It holds no
// part of the credential itself.
type Status struct {
	Name, Server string
	// Credential names it, with where it is from and when it expires.
	Credential string
	// Expires is when that will be; zero where it is not known or never.
	Expires      time.Time
	Impersonates bool
	// User is who the server itself is there, where the cluster tells.
	User string
	// Reachable says that the API server answered.
	Reachable bool
	// Error is what is wrong with the cluster or the credential, empty when nothing is.
	Error string
}

const (
	// probeTimeout bounds how long a Status waits for a cluster.
	probeTimeout = 2 * time.Second
	// probeEvery is for how long what was found is given out again.
	probeEvery = 10 * time.Second
)

// Status says how the clusters are, in the order of their names. It takes no longer
// than probeTimeout, however many clusters hang.
func (c *Clusters) Status(ctx context.Context) []Status {
	out := make([]Status, 0, len(c.byName))
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, one := range c.byName {
		all.Go(func() {
			s := one.status(ctx)
			mu.Lock()
			defer mu.Unlock()
			out = append(out, s)
		})
	}
	all.Wait()
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *cluster) status(ctx context.Context) Status {
	s := Status{Name: c.name, Server: c.config.Host, Impersonates: c.impersonate != nil}
	found := c.found(ctx)
	s.Credential, s.Expires = c.credential.String()
	s.User, s.Reachable, s.Error = found.user, found.reachable, found.problem
	if c.tokens != nil {
		expires, failed := c.tokens.state()
		s.Credential = fmt.Sprintf("service account %s, token%s, asked for with %s", c.tokens.account, cmp.Or(until(expires), " not yet there"), s.Credential)
		s.Expires = expires
		if failed != nil {
			s.Error = "asking for a token for service account " + c.tokens.account + ": " + audit.MaskText(failed.Error())
		}
	}
	return s
}

// probe is what a cluster last said to the question who the server is there. One is
// under way at a time, so that nothing piles up at a cluster that hangs.
type probe struct {
	mu     sync.Mutex
	last   answer
	at     time.Time
	flight chan struct{}
}

type answer struct {
	user      string
	reachable bool
	problem   string
}

func (c *cluster) found(ctx context.Context) answer {
	p := &c.probe
	p.mu.Lock()
	if p.flight == nil {
		if !p.at.IsZero() && time.Since(p.at) < probeEvery {
			defer p.mu.Unlock()
			return p.last
		}
		p.flight = make(chan struct{})
		go func(done chan struct{}) {
			// Bounded by itself too; what a plugin does knows no context.
			ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
			defer cancel()
			a := c.ask(ctx)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.last, p.at, p.flight = a, time.Now(), nil
			close(done)
		}(p.flight)
	}
	done := p.flight
	p.mu.Unlock()
	late := time.NewTimer(probeTimeout)
	defer late.Stop()
	select {
	case <-done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.last
	case <-ctx.Done():
	case <-late.C:
	}
	return answer{problem: fmt.Sprintf("no answer within %s", probeTimeout)}
}

// ask asks the cluster who the server is there.
func (c *cluster) ask(ctx context.Context) answer {
	ctx = own(ctx)
	body, err := action.Canonical(authenticationv1.SelfSubjectReview{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"}})
	if err != nil {
		return answer{problem: err.Error()}
	}
	result := c.client.Post().AbsPath("/apis/authentication.k8s.io/v1/selfsubjectreviews").
		SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).Do(ctx)
	var refused *gate.APIError
	switch err := fault(ctx, result.Error()); {
	case err == nil:
		var review authenticationv1.SelfSubjectReview
		if data, err := result.Raw(); err != nil || json.Unmarshal(data, &review) != nil {
			return answer{problem: "what answers is no API server"}
		}
		return answer{user: review.Status.UserInfo.Username, reachable: true}
	case errors.As(err, &refused) && (refused.Code == http.StatusForbidden || refused.Code == http.StatusNotFound):
		return answer{reachable: true} // it does not tell
	case errors.As(err, &refused):
		return answer{reachable: true, problem: audit.MaskText(fmt.Sprintf("the API server answers with error %d: %.500s", refused.Code, refused.Message))}
	case errors.Is(err, context.DeadlineExceeded):
		return answer{problem: fmt.Sprintf("no answer within %s", probeTimeout)}
	default:
		return answer{problem: audit.MaskText(fmt.Sprintf("%.500s", err.Error()))}
	}
}
