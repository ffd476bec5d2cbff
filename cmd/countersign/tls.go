package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"countersign/configs"
)

// certificateEvery is how often, at most, the certificate's files are looked at.
const certificateEvery = 5 * time.Second

// certificate is what the server shows, as its files hold it: whoever renews it
// exchanges the files, and nothing has to be restarted.
type certificate struct {
	configs.TLS
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	pair   *tls.Certificate
	held   []byte // what the files held when they were last looked at
	looked time.Time
}

func newCertificate(files configs.TLS, log *slog.Logger) (*certificate, error) {
	c := &certificate{TLS: files, log: log, now: time.Now}
	if _, err := c.read(); err != nil {
		return nil, fmt.Errorf("reading the TLS certificate (tls.certFile and tls.keyFile): %w", err)
	}
	c.looked = c.now()
	return c, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}

// get looks at the files and gives the certificate. Files that are no pair, which
// they are for a moment while they are exchanged, leave the last good one.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Sub(c.looked) >= certificateEvery {
		c.looked = c.now()
		if changed, err := c.read(); err != nil && changed {
			c.log.Error("the TLS certificate does not load; the last good one stays", "err", err.Error())
		} else if changed {
			c.log.Info("the TLS certificate has changed", "notAfter", c.pair.Leaf.NotAfter)
		}
	}
	return c.pair, nil
}

// read takes the pair from its files, if they hold another, or fail otherwise, than
// when they were last read.
func (c *certificate) read() (changed bool, err error) {
	var held []byte
	defer func() {
		if err != nil {
			held = []byte(err.Error())
		}
		changed = !bytes.Equal(held, c.held)
		c.held = held
	}()
	certPEM, err := os.ReadFile(c.CertFile)
	if err != nil {
		return false, err
	}
	keyPEM, err := readSecret(c.KeyFile)
	if err != nil {
		return false, err
	}
	pair, err := tls.X509KeyPair(certPEM, []byte(keyPEM))
	if err != nil {
		return false, fmt.Errorf("%s with %s: %w", c.CertFile, c.KeyFile, err)
	}
	held = bytes.Join(pair.Certificate, nil)
	c.pair = &pair
	return false, nil
}
