package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"countersign/action"
	"countersign/gate"
)

// maxOutput bounds what is kept of each stream of a command, in bytes.
const maxOutput = 1 << 20

// output keeps the beginning of a stream and counts the rest. client-go may
// still write to it when it has given a stream up.
type output struct {
	mu      sync.Mutex
	kept    []byte
	omitted int64
	over    bool
}

// take ends the stream: what is written later is lost.
func (o *output) take() (kept string, omitted int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	// A NUL is six bytes in JSON, and shows nothing.
	return strings.ReplaceAll(strings.ToValidUTF8(string(o.kept), "\uFFFD"), "\x00", ""), o.omitted
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return len(p), nil
	}
	keep := p[:min(len(p), maxOutput-len(o.kept))]
	o.kept = append(o.kept, keep...)
	o.omitted += int64(len(p) - len(keep))
	return len(p), nil
}

// exec runs a command in a container, without input and without a terminal, and
// answers with what it wrote and how it ended (tools.ExecResult).
func (c *cluster) exec(ctx context.Context, a action.Action, auditID string, live gate.Live) (gate.Response, error) {
	if live.UID != "" {
		// The API has no precondition for exec: a pod that has taken the place of the one
		// that was looked at, as those of a StatefulSet do, is refused here.
		pod, err := c.object(ctx, action.Action{Verb: action.Get, Resource: a.Resource, Namespace: a.Namespace, Name: a.Name}, auditID+".uid", false)
		if err != nil {
			return gate.Response{}, err
		}
		if uid := (action.Preview{Live: pod}).UID(); uid != live.UID {
			return gate.Response{}, &gate.APIError{Code: http.StatusConflict, Reason: "Conflict", Message: "another pod has this name now"}
		}
	}
	req := c.client.Post().AbsPath(path(a)...).Param("container", a.Options.Container).Param("stdout", "true").Param("stderr", "true")
	for _, argument := range a.Options.Command {
		req = req.Param("command", argument)
	}
	config := rest.CopyConfig(c.config)
	upgrade := &upgrade{id: auditID}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return upgrading{next, upgrade} })
	socket, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, req.URL().String())
	if err != nil {
		return gate.Response{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, req.URL())
	if err != nil {
		return gate.Response{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	// Where the upgrade fails nothing has run, so that it may be tried the older way.
	executor, err := remotecommand.NewFallbackExecutor(socket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return gate.Response{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(a.Options.TimeoutSeconds)*time.Second)
	defer cancel()
	var stdout, stderr output
	err = executor.StreamWithContext(limited, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	result := map[string]any{}
	var exit utilexec.CodeExitError
	switch {
	case errors.As(err, &exit):
		result["exitCode"] = exit.Code
	case err != nil && upgrade.begun && limited.Err() != nil && ctx.Err() == nil:
		result["timedOut"] = true
	case err != nil && upgrade.refused != nil:
		return gate.Response{}, fault(ctx, upgrade.refused)
	case err != nil:
		return gate.Response{}, fault(ctx, err)
	default:
		result["exitCode"] = 0
	}
	for name, stream := range map[string]*output{"stdout": &stdout, "stderr": &stderr} {
		kept, omitted := stream.take()
		if result[name] = kept; omitted > 0 {
			result[name+"Omitted"] = omitted
		}
	}
	body, err := action.Canonical(result)
	return gate.Response{Code: http.StatusOK, Body: body}, err
}

// upgrade is what is known of the requests that client-go builds by itself.
type upgrade struct {
	id string
	// refused is why the API server did not let the command begin; client-go
	// hands on no more than its words.
	refused *gate.APIError
	// begun says that it did.
	begun bool
}

// upgrading adds the Audit-ID to such a request and looks at the answer.
type upgrading struct {
	next http.RoundTripper
	*upgrade
}

func (u upgrading) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set(headerAuditID, u.id)
	resp, err := u.next.RoundTrip(req)
	if err != nil || resp.StatusCode == http.StatusSwitchingProtocols {
		u.refused, u.begun = nil, err == nil
		return resp, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	u.refused = &gate.APIError{Code: resp.StatusCode, Reason: string(metav1.StatusReasonUnknown), Message: string(body)}
	var status metav1.Status
	if json.Unmarshal(body, &status) == nil && status.Message != "" {
		u.refused.Reason, u.refused.Message = string(status.Reason), status.Message
	}
	return resp, err
}

// maxRefusal bounds what is read of a refusal, in bytes.
const maxRefusal = 64 << 10

func anyList(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
