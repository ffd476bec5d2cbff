package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/e2e/rig"
)

// turn is one call of a client that was served: how long the server took for it,
// and how often it was told before to come later.
type turn struct {
	client, limited int
	took            time.Duration
}

// crowd are clients at the edge of limits: all of one address, every
// second one with a session and the others without, each asking again as soon as it
// has an answer or as Retry-After says. It ends when ctx does, or with an error that
// is no 429.
type crowd struct {
	*stage
	clients int
	http    *http.Client
	served  chan turn
	failed  chan error
}

func newCrowd(tb testing.TB, ctx context.Context, clients int, limits string) *crowd {
	tb.Helper()
	issuer, err := rig.StartIssuer()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { issuer.Close() })
	s := prepareStage(tb, "  rules:\n  - {name: reads, effect: allow, match: {verbs: [list]}}\n")
	for from, to := range map[string]string{
		"issuers: [": fmt.Sprintf("issuers: [{url: %q}, ", issuer.URL),
		"limits: {perPrincipal: 10000, perAddress: 10000}": limits,
	} {
		if err := rig.Replace(s.server.Config, from, to); err != nil {
			tb.Fatal(err)
		}
	}
	s.start()
	tb.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			tb.Error(err)
		}
	})
	c := &crowd{
		stage: s, clients: clients, served: make(chan turn), failed: make(chan error, clients),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}},
	}
	for n := range clients {
		// Ten agents, with twenty clients each: an agent is not at its own limit.
		token, err := issuer.Token(map[string]any{"sub": fmt.Sprint("agent-", n%10), "aud": audience})
		if err != nil {
			tb.Fatal(err)
		}
		go func() {
			if err := c.client(ctx, n, token); err != nil && ctx.Err() == nil {
				c.failed <- fmt.Errorf("client %d: %w", n, err)
			}
		}()
	}
	return c
}

func (c *crowd) client(ctx context.Context, n int, token string) error {
	headers := map[string]string{"Mcp-Protocol-Version": "2025-11-25"}
	meta := ""
	if n%2 == 0 {
		header, _, err := c.post(ctx, n, token, headers, strings.Replace(hello, "2025-06-18", "2025-11-25", 1))
		if err != nil {
			return err
		}
		headers["Mcp-Session-Id"] = header.Get("Mcp-Session-Id")
		if _, _, err := c.post(ctx, n, token, headers, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); err != nil {
			return err
		}
	} else {
		headers = map[string]string{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "list_resources"}
		meta = "," + modern
	}
	for call := n; ; call++ {
		// Identical calls have a budget of their own, which is not what this is about.
		body := fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"list_resources","arguments":{"kind":"deployments","namespace":%q,"limit":%d}%s}}`,
			call, c.namespace, 1+call*7%500, meta)
		_, answer, err := c.post(ctx, n, token, headers, body)
		if err != nil {
			return err
		}
		select {
		case c.served <- answer:
		case <-ctx.Done():
			return nil
		}
	}
}

// post sends a message until it is not told to come later.
func (c *crowd) post(ctx context.Context, n int, token string, headers map[string]string, body string) (http.Header, turn, error) {
	answer := turn{client: n}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.server.URL, strings.NewReader(body))
		if err != nil {
			return nil, answer, err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		req.Header.Set("Authorization", "Bearer "+token)
		for name, value := range headers {
			req.Header.Set(name, value)
		}
		start := time.Now()
		resp, err := c.http.Do(req)
		if err != nil {
			return nil, answer, err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		answer.took = time.Since(start)
		switch {
		case err != nil:
			return nil, answer, err
		case resp.StatusCode == http.StatusTooManyRequests:
			seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if err != nil || seconds < 1 {
				return nil, answer, fmt.Errorf("429 with Retry-After %q", resp.Header.Get("Retry-After"))
			}
			answer.limited++
			select {
			case <-time.After(time.Duration(seconds) * time.Second):
			case <-ctx.Done():
				return nil, answer, ctx.Err()
			}
		case resp.StatusCode == http.StatusAccepted:
			return resp.Header, answer, nil
		case resp.StatusCode != http.StatusOK || !strings.Contains(string(text), `"result":`) || strings.Contains(string(text), `"isError":true`):
			return nil, answer, fmt.Errorf("HTTP %d: %.500s", resp.StatusCode, text)
		default:
			return resp.Header, answer, nil
		}
	}
}

// Of 200 clients at the limit's edge each is served again and again; those that are
// too quick get 429 and nothing else happens to anybody.
func TestClientsAtTheLimit(t *testing.T) {
	t.Parallel()
	const clients, calls = 200, 3
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := newCrowd(t, ctx, clients, "limits: {perPrincipal: 50, perAddress: 50}") // so that any machine is too quick
	counts, limited := make([]int, clients), 0
	for slices.Min(counts) < calls {
		select {
		case one := <-c.served:
			counts[one.client]++
			limited += one.limited
		case err := <-c.failed:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatalf("some were never served: %v", counts)
		}
	}
	if limited == 0 {
		t.Error("nobody was limited")
	}
	records, err := c.server.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(records, func(r rig.Record) bool { return r.Type == "rate.limited" }) {
		t.Error("no record tells that somebody was limited")
	}
}

// BenchmarkClientsAtTheLimit is the same for longer: an iteration is 24 calls that
// were served, so that the 500 of make bench take a minute at the default limit of
// 200 a second. Memory is measured once the first tenth is over, and at the end:
// anon is what the server has allocated, RSS also what it has mapped of its store.
func BenchmarkClientsAtTheLimit(b *testing.B) {
	const clients, each = 200, 24
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	c := newCrowd(b, ctx, clients, "")
	var took []float64
	limited, n := 0, 0
	start, anon, rss := time.Now(), 0.0, 0.0
	for b.Loop() {
		for range each {
			select {
			case one := <-c.served:
				took = append(took, float64(one.took.Microseconds())/1000)
				limited += one.limited
			case err := <-c.failed:
				b.Fatal(err)
			}
		}
		if n++; n == 1 || n == 50 {
			anon, rss = rig.Memory(c.server.PID())
		}
	}
	seconds := time.Since(start).Seconds()
	anonEnd, rssEnd := rig.Memory(c.server.PID())
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/seconds, "calls/s")
	b.ReportMetric(float64(limited)/seconds, "429/s")
	b.ReportMetric(took[len(took)/2], "p50-ms")
	b.ReportMetric(took[len(took)*99/100], "p99-ms")
	b.ReportMetric(anon, "anon-start-MB")
	b.ReportMetric(anonEnd, "anon-end-MB")
	b.ReportMetric(rss, "RSS-start-MB")
	b.ReportMetric(rssEnd, "RSS-end-MB")
	b.ReportMetric(seconds, "s")
}
