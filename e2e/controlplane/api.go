package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// api asks the API server as the administrator. It is as much of a client as a start needs.
type api struct {
	server, token string
	client        *http.Client
}

func newAPI(server string, c *credentials) *api {
	roots := x509.NewCertPool()
	if cert, err := x509.ParseCertificate(c.cert.Certificate[0]); err == nil {
		roots.AddCert(cert)
	}
	return &api{server: server, token: c.admin.token, client: &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}
}

// get reads a URL, which may also be another component's, and decodes the answer into out
// unless out is nil. Any status but success is an error.
func (a *api) get(ctx context.Context, url string, out any) error {
	return a.do(ctx, http.MethodGet, url, "", out)
}

func (a *api) post(ctx context.Context, path, body string) error {
	return a.do(ctx, http.MethodPost, a.server+path, body, nil)
}

func (a *api) do(ctx context.Context, method, url, body string, out any) error {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	if strings.HasPrefix(url, a.server) {
		request.Header.Set("Authorization", "Bearer "+a.token)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, url, response.Status, content)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(content, out)
}
