package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"countersign/approvals"
	"countersign/gate"
)

// ErrNoServer says that nobody answers on the admin socket.
var ErrNoServer = errors.New("no server answers on the admin socket")

// Client speaks to a running server.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the socket.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks how the server is.
func (c *Client) Status(ctx context.Context) (status Status, err error) {
	return status, c.do(ctx, http.MethodGet, "/v1/status", nil, &status)
}

// Operations lists what is open.
func (c *Client) Operations(ctx context.Context) (ops []approvals.Operation, err error) {
	return ops, c.do(ctx, http.MethodGet, "/v1/operations", nil, &ops)
}

// Operation shows one.
func (c *Client) Operation(ctx context.Context, id string) (op approvals.Operation, err error) {
	return op, c.do(ctx, http.MethodGet, "/v1/operations/"+url.PathEscape(id), nil, &op)
}

// Vote approves or rejects.
func (c *Client) Vote(ctx context.Context, id string, v approvals.Ballot) (op approvals.Operation, err error) {
	return op, c.do(ctx, http.MethodPost, "/v1/operations/"+url.PathEscape(id)+"/vote", v, &op)
}

// Grants lists the grants that hold, and those that were taken back early.
func (c *Client) Grants(ctx context.Context) (grants []approvals.Grant, err error) {
	return grants, c.do(ctx, http.MethodGet, "/v1/grants", nil, &grants)
}

// Revoke takes a grant back.
func (c *Client) Revoke(ctx context.Context, id, reason string) (grant approvals.Grant, err error) {
	return grant, c.do(ctx, http.MethodPost, "/v1/grants/"+url.PathEscape(id)+"/revoke", Revocation{Reason: reason}, &grant)
}

// Locks lists the locks that hold.
func (c *Client) Locks(ctx context.Context) (locks []approvals.Lock, err error) {
	return locks, c.do(ctx, http.MethodGet, "/v1/locks", nil, &locks)
}

// Lock sets a lock; id, setter and time are the server's to give.
func (c *Client) Lock(ctx context.Context, l approvals.Lock) (set gate.Locked, err error) {
	return set, c.do(ctx, http.MethodPost, "/v1/locks", l, &set)
}

// Unlock removes one.
func (c *Client) Unlock(ctx context.Context, id string) (l approvals.Lock, err error) {
	return l, c.do(ctx, http.MethodDelete, "/v1/locks/"+url.PathEscape(id), nil, &l)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	body, err := c.request(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	return nil
}

func (c *Client) request(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	payload, raw := in.(io.Reader)
	if in != nil && !raw {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, payload)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var operation *net.OpError
		if errors.As(err, &operation) && operation.Op == "dial" {
			return nil, fmt.Errorf("%w %s: is it running, and may you open the socket?", ErrNoServer, c.socket)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, &answer{resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return resp.Body, nil
}

// answer is an error that the server answered with.
type answer struct {
	code int
	text string
}

func (a *answer) Error() string { return a.text }

// Is makes what the server did not find gate.ErrNotFound here too.
func (a *answer) Is(target error) bool {
	return a.code == http.StatusNotFound && target == gate.ErrNotFound
}
