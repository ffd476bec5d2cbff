package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/e2e/rig"
)

// The front door as it is configured: health for whoever asks, scopes, rates, and
// a certificate.
func TestFrontDoor(t *testing.T) {
	s := newStage(t)
	root := strings.TrimSuffix(s.server.URL, "/mcp")
	get := func(client *http.Client, url string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "10.1.2.3" // as a kubelet asks
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if code, text := get(http.DefaultClient, root+"/healthz"); code != 200 || text != "ok\n" {
		t.Errorf("%d %s", code, text)
	}
	code, text := get(http.DefaultClient, root+"/readyz")
	for _, line := range []string{"audit log: writable\n", "policy: loaded\n", "clusters: 1 of 1 reachable\n", "issuers: keys of 1 of 1 known\n"} {
		if code != 200 || !strings.Contains(text, line) {
			t.Errorf("%d %s; want %s", code, text, line)
		}
	}

	s.reconfigure("limits: {perPrincipal: 10000", "scopes: {read: \"c:read\", change: \"c:change\"}\nlimits: {perPrincipal: 5")
	const list = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_namespaces","arguments":{},` + modern + `}}`
	headers := map[string]string{"Mcp-Method": "tools/call", "Mcp-Name": "list_namespaces"}
	if r := s.send(world.token, "", "2026-07-28", headers, list); r.status != 403 || !strings.Contains(r.challenge, `error="insufficient_scope", scope="c:read"`) {
		t.Errorf("%+v", r)
	}
	limited := 0
	for range 30 {
		if r := s.send(world.token, "", "2026-07-28", headers, list); r.status == 429 {
			limited++
		}
	}
	if limited == 0 {
		t.Error("nobody is limited")
	}

	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(s.server.Config)
	certificate(t, dir)
	if err := rig.Replace(s.server.Config, "approvals:", "tls: {certFile: tls.crt, keyFile: tls.key}\napprovals:"); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	if code, text := get(client, strings.Replace(root, "http:", "https:", 1)+"/healthz"); code != 200 || text != "ok\n" {
		t.Errorf("%d %s", code, text)
	}
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "tls.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Start(s.ctx); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a server starts with a key that everybody can read: %v", err)
	}
	if err := rig.Replace(s.server.Config, "tls: {certFile: tls.crt, keyFile: tls.key}\n", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, r := range records {
		found[r.Type]++
	}
	if found["rate.limited"] == 0 || found["call.refused"] == 0 {
		t.Errorf("on record: %v", found)
	}
}

// certificate writes tls.crt and tls.key.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"tls.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"tls.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
	}
	if err := rig.WriteFiles(dir, files); err != nil {
		t.Fatal(fmt.Errorf("writing a certificate: %w", err))
	}
}
