package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/configs"
)

// writePair makes a certificate of this serial number.
func writePair(t *testing.T, files configs.TLS, serial int64, which ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{files.CertFile: {Type: "CERTIFICATE", Bytes: der}, files.KeyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if len(which) > 0 && which[0] != path {
			continue
		}
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What lies in the files is what the next client sees; files that are no pair, or
// a key that everybody can read, leave what was there, and the log says so once.
func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	files := configs.TLS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	writePair(t, files, 1)
	var log bytes.Buffer
	c, err := newCertificate(files, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c.now = func() time.Time { return now }
	listener, err := tls.Listen("tcp", "127.0.0.1:0", c.config())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	serial := func(after time.Duration) int64 {
		t.Helper()
		c.mu.Lock()
		now = now.Add(after)
		c.mu.Unlock()
		raw, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	for _, step := range []struct {
		name   string
		change func()
		after  time.Duration
		want   int64
		log    string
	}{
		{"as it was", func() {}, 0, 1, ""},
		{"renewed, and not yet looked at", func() { writePair(t, files, 2) }, time.Second, 1, ""},
		{"renewed", func() {}, certificateEvery, 2, "has changed"},
		{"another key only", func() { writePair(t, files, 3, files.KeyFile) }, certificateEvery, 2, "does not load"},
		{"still", func() {}, certificateEvery, 2, ""},
		{"no file", func() { os.Remove(files.CertFile) }, certificateEvery, 2, "does not load"},
		{"both", func() { writePair(t, files, 4) }, certificateEvery, 4, "has changed"},
		{"a key for everybody", func() { writePair(t, files, 5); os.Chmod(files.KeyFile, 0o644) }, certificateEvery, 4, "chmod 600"},
	} {
		log.Reset()
		step.change()
		if got := serial(step.after); got != step.want {
			t.Errorf("%s: certificate %d is shown; want %d", step.name, got, step.want)
		}
		if got := log.String(); (step.log == "") != (got == "") || !strings.Contains(got, step.log) || strings.Contains(got, "PRIVATE") {
			t.Errorf("%s: the log says %q", step.name, got)
		}
	}
	if _, err := newCertificate(files, slog.Default()); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a server starts with a key that everybody can read: %v", err)
	}
}
