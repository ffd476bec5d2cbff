package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"countersign/e2e/rig"
)

// Clients that others wrote, against the real server: the Go SDK, and, where npm is
// there and reaches its registry, the TypeScript SDKs, the Inspector and the
// conformance suite. The SDKs find out by themselves where to log in, and do.
func TestClients(t *testing.T) {
	issuer, err := rig.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	s := prepareStage(t, "")
	token := mint(t, issuer, map[string]any{"aud": s.server.URL, "scope": "cluster:read cluster:change"})
	proxied := withToken(t, s.server.URL, token)
	for _, change := range [][2]string{
		{"url: " + audience, fmt.Sprintf("url: %s\nallowedOrigins: [%q]\nscopes: {read: \"cluster:read\", change: \"cluster:change\"}", s.server.URL, strings.TrimSuffix(proxied, "/mcp"))},
		// The issuer of service accounts, where nobody can log in, stays the first.
		{"kubernetes: true}", fmt.Sprintf("kubernetes: true}, {url: %q, groupsClaim: groups}", issuer.URL)},
	} {
		if err := rig.Replace(s.server.Config, change[0], change[1]); err != nil {
			t.Fatal(err)
		}
	}
	issuer.Resource = s.server.URL
	if err := issuer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { issuer.Close() })
	s.start()
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})

	arguments := fmt.Sprintf(`{"kind":"deploy","namespace":%q}`, s.namespace)
	t.Run("Go SDK", func(t *testing.T) { goSDK(t, s.server.URL, arguments) })

	n, without := installNode(t)
	for _, row := range []struct {
		name string
		test func(*testing.T)
	}{
		{"TypeScript SDK 1", func(t *testing.T) {
			typeScript(t, n, "2025-11-25", "@modelcontextprotocol/sdk", s.server.URL, "list_resources", arguments)
		}},
		{"TypeScript SDK 2", func(t *testing.T) {
			typeScript(t, n, "2026-07-28", "@modelcontextprotocol/client", s.server.URL, "list_resources", arguments, `{"versionNegotiation":{"mode":"auto"}}`)
		}},
		{"TypeScript SDK 2, with sessions", func(t *testing.T) {
			typeScript(t, n, "2025-11-25", "@modelcontextprotocol/client", s.server.URL, "list_resources", arguments, `{"versionNegotiation":{"mode":"legacy"}}`)
		}},
		{"Inspector, HTTP", func(t *testing.T) {
			for _, era := range []string{"legacy", "modern"} {
				inspect(t, n, arguments, s.server.URL, "--protocol-era", era, "--header", "Authorization: Bearer "+token)
			}
		}},
		{"Inspector, stdio", func(t *testing.T) {
			// Another data folder: two servers cannot have one.
			server, err := newServer(t.TempDir(), world.cluster.Kubeconfig)
			if err != nil {
				t.Fatal(err)
			}
			inspect(t, n, arguments, "-e", "COUNTERSIGN_TOKEN="+world.token, "--", world.binary, "serve", "--stdio", "--config", server.Config)
		}},
		{"conformance", func(t *testing.T) { conformance(t, n, proxied) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			if without != "" {
				t.Skip(without)
			}
			row.test(t)
		})
	}
}

// withToken is an address where everybody has this token: the conformance suite
// cannot send a header of its own.
func withToken(t *testing.T, endpoint, token string) string {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // Host stays what the client said
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Header.Set("Authorization", "Bearer "+token)
		},
		// Only a test that fails shows it: clients go away whenever they like.
		ErrorLog: log.New(t.Output(), "proxy: ", log.Lmicroseconds),
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := rig.Whole(r); err != nil {
			panic(http.ErrAbortHandler)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL + target.Path
}

func goSDK(t *testing.T, endpoint, arguments string) {
	const callback = "http://127.0.0.1:1/callback" // nothing listens there: the "browser" stops before
	handler, err := auth.NewAuthorizationCodeHandler(&auth.AuthorizationCodeHandlerConfig{
		DynamicClientRegistrationConfig: &auth.DynamicClientRegistrationConfig{
			Metadata: &oauthex.ClientRegistrationMetadata{RedirectURIs: []string{callback}, TokenEndpointAuthMethod: "none"},
		},
		AuthorizationCodeFetcher: func(ctx context.Context, args *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, args.URL, nil)
			if err != nil {
				return nil, err
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			back, err := resp.Location()
			if err != nil {
				return nil, fmt.Errorf("the browser shows %s: %w", resp.Status, err)
			}
			q := back.Query()
			return &auth.AuthorizationResult{Code: q.Get("code"), State: q.Get("state"), Iss: q.Get("iss")}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	client := mcp.NewClient(&mcp.Implementation{Name: "clients-test", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: endpoint, OAuthHandler: handler}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	answer, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "list_resources", Arguments: json.RawMessage(arguments)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("revision", session.InitializeResult().ProtocolVersion)
	readsWeb(t, got)
}

// readsWeb fails unless an answer is the list with the one Deployment of a new namespace.
func readsWeb(t *testing.T, answer []byte) {
	t.Helper()
	var result struct {
		IsError bool `json:"isError"`
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	if err := json.Unmarshal(answer, &result); err != nil || result.IsError || len(result.Content) != 1 || !regexp.MustCompile(`\nweb +\d/2 `).MatchString(result.Content[0].Text) {
		t.Errorf("%s, %v", answer, err)
	}
}

// node runs what npm has installed.
type node struct{ binary, modules string }

// offline is what npm says when it does not reach a registry, or that one is not for us.
var offline = regexp.MustCompile(`ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT|E40[137]\b|E5\d\d\b`)

// installNode installs the packages of testdata/clients once, below the user's cache
// folder, or says why it cannot. A Node.js is one of them.
func installNode(t *testing.T) (n *node, without string) {
	t.Helper()
	npm, err := exec.LookPath("npm")
	if err != nil {
		return nil, "npm is not installed"
	}
	root := os.Getenv("COUNTERSIGN_CACHE")
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		root = filepath.Join(user, "countersign")
	}
	root = filepath.Join(root, "clients")
	files, sum := map[string]string{}, sha256.New()
	for _, name := range []string{"package.json", "package-lock.json"} {
		text, err := os.ReadFile(filepath.Join("testdata/clients", name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
		sum.Write(text)
	}
	dir := filepath.Join(root, fmt.Sprintf("%x-%s-%s", sum.Sum(nil)[:8], runtime.GOOS, runtime.GOARCH))
	if _, err := os.Stat(dir); err != nil {
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		tmp, err := os.MkdirTemp(root, "installing-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(tmp)
		if err := rig.WriteFiles(tmp, files); err != nil {
			t.Fatal(err)
		}
		install := exec.CommandContext(t.Context(), npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")
		install.Dir = tmp
		if out, err := install.CombinedOutput(); offline.Match(out) && err != nil {
			return nil, "npm cannot install the clients: " + string(offline.Find(out))
		} else if err != nil {
			t.Fatalf("installing the clients: %v\n%s", err, out)
		}
		if err := os.Rename(tmp, dir); err != nil {
			if _, there := os.Stat(dir); there != nil { // else another run was first
				t.Fatal(err)
			}
		}
	}
	n = &node{modules: filepath.Join(dir, "node_modules")}
	found, err := filepath.Glob(filepath.Join(n.modules, "node-*", "bin", "node"))
	if err != nil || len(found) != 1 {
		return nil, "there is no package of Node.js for this platform"
	}
	n.binary = found[0]
	return n, ""
}

// run runs a script of a package, or of testdata, and returns what it printed.
func (n *node) run(t *testing.T, script string, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), n.binary, append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // some keep things there
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", filepath.Base(script), err, errOut.String())
	}
	return out.String(), nil
}

// typeScript runs testdata/clients/login.mjs, and expects it to talk in this revision.
func typeScript(t *testing.T, n *node, revision string, args ...string) {
	text, err := os.ReadFile("testdata/clients/login.mjs")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // Node.js looks for packages beside the script
	if err := os.WriteFile(filepath.Join(dir, "login.mjs"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(n.modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	out, err := n.run(t, filepath.Join(dir, "login.mjs"), args...)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Revision string
		Tools    int
		Answer   json.RawMessage
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Revision != revision || got.Tools == 0 {
		t.Errorf("%s, %v", out, err)
	}
	readsWeb(t, got.Answer)
}

// inspect lists the tools with the Inspector, which looks whether each schema is one that
// all clients can read, and calls one.
func inspect(t *testing.T, n *node, arguments string, target ...string) {
	t.Helper()
	script := filepath.Join(n.modules, "@modelcontextprotocol/inspector/clients/launcher/build/index.js")
	cli := func(flags ...string) []byte {
		out, err := n.run(t, script, append(append([]string{"--cli"}, flags...), target...)...)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(out)
	}
	var list struct{ Tools []struct{ Name string } }
	if out := cli("--method", "tools/list", "--strict"); json.Unmarshal(out, &list) != nil || len(list.Tools) < 20 {
		t.Errorf("%d tools: %.300s", len(list.Tools), out)
	}
	readsWeb(t, cli("--method", "tools/call", "--tool-name", "list_resources", "--tool-args-json", arguments))
}
