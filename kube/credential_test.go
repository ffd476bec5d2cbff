package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"countersign/action"
	"countersign/gate"
)

// kubeconfig writes one with this user for a server that speaks TLS.
func kubeconfig(t *testing.T, dir, server string, ca []byte, user string) string {
	t.Helper()
	path := filepath.Join(dir, "kubeconfig")
	write(t, path, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %q}}],
contexts: [{name: c, context: {cluster: c, user: bea}}, {name: other, context: {cluster: c, user: carl}}],
users: [{name: bea, user: %s}, {name: carl, user: {tokenFile: elsewhere}}]}`, server, base64.StdEncoding.EncodeToString(ca), user))
	return path
}

func tlsServer(t *testing.T, handler http.HandlerFunc) (url string, ca []byte) {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return server.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// A file that everybody may read, or a group change, is no place for a credential.
func TestPrivateFiles(t *testing.T) {
	for _, row := range []struct {
		file string // below the folder, whose mode is not as it should be
		mode os.FileMode
		want string
	}{
		{"kubeconfig", 0o644, "kubeconfig, which may be read by everybody"},
		{"kubeconfig", 0o604, "mode 0604"},
		{"kubeconfig", 0o660, "mode 0660"},
		{"kubeconfig", 0o640, ""}, // as Kubernetes hands a Secret to a pod
		{"key.pem", 0o644, "kubeconfig names "},
		{"key.pem", 0o400, ""},
		{"token", 0o644, "token, which may be read by everybody"},
		{"token", 0o600, ""},
		{"elsewhere", 0o644, ""}, // of a context that is not in use
	} {
		dir := t.TempDir()
		user := "{tokenFile: token}"
		if row.file == "key.pem" {
			user = "{client-certificate: cert.pem, client-key: key.pem}"
		}
		path := kubeconfig(t, dir, "https://127.0.0.1:1", nil, user)
		cert, key := certificate(t, time.Now().Add(time.Hour))
		for name, text := range map[string]string{"token": "t", "elsewhere": "t", "cert.pem": cert, "key.pem": key} {
			write(t, filepath.Join(dir, name), text)
		}
		if err := os.Chmod(filepath.Join(dir, row.file), row.mode); err != nil {
			t.Fatal(err)
		}
		_, err := New([]Config{{Name: "c", Kubeconfig: path}}, "test", time.Minute)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s %04o: %v; want %q", row.file, row.mode, err, row.want)
		}
	}
}

func certificate(t *testing.T, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bea"}, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
}

// jwt is a token that nobody signed.
func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".signature"
}

// A credential is named with where it is from and when it expires, and never shown.
func TestCredentialName(t *testing.T) {
	at := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	cert, key := certificate(t, at)
	token := jwt(fmt.Sprintf(`{"sub":"system:serviceaccount:agents:countersign","exp":%d}`, at.Unix()))
	data := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, row := range []struct {
		user, want string
		expires    bool
	}{
		{"{client-certificate-data: " + data(cert) + ", client-key-data: " + data(key) + "}", "kubeconfig user bea, client certificate until 2031-02-03T04:05:06Z", true},
		{"{client-certificate: cert.pem, client-key: key.pem}", "kubeconfig user bea, client certificate until 2031-02-03T04:05:06Z", true},
		{"{token: " + token + "}", "kubeconfig user bea, service account agents/countersign, token until 2031-02-03T04:05:06Z", true},
		{"{tokenFile: token}", "kubeconfig user bea, service account agents/countersign, token until 2031-02-03T04:05:06Z", true},
		{"{token: hunter2}", "kubeconfig user bea, token", false},
		{"{username: b, password: hunter2}", "kubeconfig user bea, password", false},
		{"{token: hunter2, as: root}", "kubeconfig user bea as root, token", false},
		{"{exec: {apiVersion: client.authentication.k8s.io/v1, command: /opt/aws-iam, interactiveMode: Never, args: [hunter2]}}", "kubeconfig user bea, exec plugin aws-iam", false},
		{"{}", "kubeconfig user bea, no credential", false},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"token": token, "cert.pem": cert, "key.pem": key} {
			write(t, filepath.Join(dir, name), text)
		}
		c, err := load(Config{Kubeconfig: kubeconfig(t, dir, "https://127.0.0.1:1", nil, row.user)})
		if err != nil {
			t.Errorf("%s: %v", row.user, err)
			continue
		}
		if got, expires := c.String(); got != row.want || expires.Equal(at) != row.expires || !row.expires && !expires.IsZero() {
			t.Errorf("%s: %s until %s; want %s", row.user, got, expires, row.want)
		}
	}
}

// Somebody whom the kubeconfig impersonates cannot impersonate in turn.
func TestImpersonateTwice(t *testing.T) {
	path := kubeconfig(t, t.TempDir(), "https://127.0.0.1:1", nil, "{token: x, as: root}")
	if _, err := New([]Config{{Name: "c", Kubeconfig: path, Impersonate: &Impersonate{}}}, "test", time.Minute); !errors.Is(err, errAs) {
		t.Errorf("got %v", err)
	}
	if _, err := New([]Config{{Name: "c", Kubeconfig: path, Impersonate: &Impersonate{}, ServiceAccount: "a/b"}}, "test", time.Minute); err != nil {
		t.Errorf("one who only asks for tokens: %v", err)
	}
}

func get(t *testing.T, clusters *Clusters) error {
	t.Helper()
	_, err := clusters.Execute(t.Context(), &alice, one(action.Get), "op.1", gate.Live{})
	return err
}

// A plugin is run for a credential, again when that is refused, never with
// somebody at a terminal, and what it fails with leaves nothing sent.
func TestExecPlugin(t *testing.T) {
	var seen []string
	url, ca := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("Authorization")
		seen = append(seen, token+" "+r.Header.Get("Impersonate-User"))
		w.Header().Set("Content-Type", "application/json")
		if token == "Bearer 1" && len(seen) > 1 { // it has expired
			status(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
			return
		}
		io.WriteString(w, `{}`)
	})
	dir := t.TempDir()
	plugin := filepath.Join(dir, "plugin")
	if err := os.WriteFile(plugin, []byte(`#!/bin/sh
case "$KUBERNETES_EXEC_INFO" in *'"interactive":false'*) ;; *) echo "$KUBERNETES_EXEC_INFO" >&2; exit 3;; esac
test ! -t 0 || exit 4
test -e "$1/broken" && exit 5
echo x >> "$1/runs"
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%d"}}' $(wc -l < "$1/runs")
`), 0o700); err != nil {
		t.Fatal(err)
	}
	user := func(mode string) string {
		return fmt.Sprintf(`{exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [%q], interactiveMode: %s}}`, dir, mode)
	}
	clusters, err := New([]Config{{Name: "c", Kubeconfig: kubeconfig(t, dir, url, ca, user("IfAvailable")), Impersonate: &Impersonate{}}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "broken"), "")
	patch := one(action.Patch)
	patch.Body, patch.Options.PatchType = map[string]any{}, action.MergePatch
	if _, err := clusters.Execute(t.Context(), &alice, patch, "op.1", gate.Live{}); !errors.Is(err, gate.ErrNotSent) || len(seen) > 0 {
		t.Errorf("a plugin that fails: %v, %q", err, seen)
	}
	if err := os.Remove(filepath.Join(dir, "broken")); err != nil {
		t.Fatal(err)
	}
	if err := get(t, clusters); err != nil {
		t.Fatal(err)
	}
	var refused *gate.APIError
	if err := get(t, clusters); !errors.As(err, &refused) || refused.Code != http.StatusUnauthorized {
		t.Errorf("a credential that has expired: %v", err)
	}
	if err := get(t, clusters); err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(seen, ", "), "Bearer 1 alice, Bearer 1 alice, Bearer 2 alice"; got != want {
		t.Errorf("the API server saw %s; want %s", got, want)
	}
	_, err = New([]Config{{Name: "c", Kubeconfig: kubeconfig(t, dir, url, ca, user("Always"))}}, "test", time.Minute)
	if err == nil || !strings.Contains(err.Error(), "interactiveMode: Always") {
		t.Errorf("a plugin that wants somebody: %v", err)
	}
}

// A plugin that hangs holds up no call for longer than the call may take, and what
// it gives too late is used for nothing.
func TestExecPluginHangs(t *testing.T) {
	arrived := make(chan string, 10)
	url, ca := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.Method
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{}`)
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "plugin"), []byte(`#!/bin/sh
while test ! -e "$1/go"; do sleep 0.01; done
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t"}}'
`), 0o700); err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprintf(`{exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [%q], interactiveMode: Never}}`, dir)
	clusters, err := New([]Config{{Name: "c", Kubeconfig: kubeconfig(t, dir, url, ca, user)}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	patch := one(action.Patch)
	patch.Body, patch.Options.PatchType = map[string]any{}, action.MergePatch
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, a := range []action.Action{patch, one(action.Get)} {
		if _, err := clusters.Execute(ctx, &alice, a, "op.1", gate.Live{}); !errors.Is(err, gate.ErrNotSent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", a, err)
		}
	}
	write(t, filepath.Join(dir, "go"), "")
	if err := get(t, clusters); err != nil { // which waits for the same plugin
		t.Error(err)
	}
	if method := <-arrived; method != http.MethodGet || len(arrived) > 0 {
		t.Errorf("%s arrived, and %d more", method, len(arrived))
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A token file is read again, as the kubelet replaces the one of a pod.
func TestTokenFileRotates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "first")
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		config := &rest.Config{Host: "https://api.invalid", BearerTokenFile: file, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			seen = append(seen, r.Header.Get("Authorization"))
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
		})}
		c, err := connect(Config{Name: "c"}, credential{config, "in-cluster"}, "test", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		clusters := &Clusters{byName: map[string]*cluster{"c": c}}
		ask := func() {
			if err := get(t, clusters); err != nil {
				t.Error(err)
			}
		}
		ask()
		write(t, file, "second")
		time.Sleep(2 * time.Minute)
		ask()
		if err := os.Remove(file); err != nil { // and comes back in a moment
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		ask()
		if got, want := strings.Join(seen, ", "), "Bearer first, Bearer second, Bearer second"; got != want {
			t.Errorf("the API server saw %s; want %s", got, want)
		}
	})
}

// Status tells of each cluster in bounded time, in the server's own name, once in a while.
func TestStatus(t *testing.T) {
	a, clusters := startAPI(t, Config{Impersonate: &Impersonate{}})
	reviews := func(w http.ResponseWriter, r *http.Request) bool {
		fmt.Fprint(w, `{"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1","status":{"userInfo":{"username":"system:serviceaccount:a:countersign"}}}`)
		return true
	}
	a.set(reviews)
	check := func(want Status) {
		t.Helper()
		clusters.byName["c"].probe.at = time.Time{} // as if it were long ago
		got := clusters.Status(t.Context())
		want.Name, want.Server, want.Credential, want.Impersonates = "c", a.URL, "kubeconfig user u, no credential", true
		if len(got) != 1 || got[0] != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	check(Status{User: "system:serviceaccount:a:countersign", Reachable: true})
	clusters.Status(t.Context()) // again, at once
	a.want(t, "twice", "POST /apis/authentication.k8s.io/v1/selfsubjectreviews")
	a.set(func(w http.ResponseWriter, _ *http.Request) bool {
		return status(w, http.StatusForbidden, "Forbidden", "no")
	})
	check(Status{Reachable: true})
	a.set(func(w http.ResponseWriter, _ *http.Request) bool {
		return status(w, http.StatusUnauthorized, "Unauthorized", "who are you")
	})
	check(Status{Reachable: true, Error: "the API server answers with error 401: who are you"})

	// A cluster that hangs is asked once, however often somebody looks.
	a.take()
	release := make(chan struct{})
	a.set(func(w http.ResponseWriter, r *http.Request) bool {
		<-release
		return reviews(w, r)
	})
	clusters.byName["c"].probe.at = time.Time{}
	brief, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for range 3 {
		if got := clusters.Status(brief); got[0].Reachable || !strings.Contains(got[0].Error, "no answer") {
			t.Errorf("one that hangs: %+v", got)
		}
	}
	if got := a.take(); len(got) > 1 {
		t.Errorf("it was asked %d times", len(got))
	}
	close(release)
	clusters.Status(t.Context()) // which waits for what is under way
	a.Close()
	clusters.byName["c"].probe.at = time.Time{}
	if got := clusters.Status(t.Context()); got[0].Reachable || !strings.Contains(got[0].Error, "refused") {
		t.Errorf("one that is gone: %+v", got)
	}
}
