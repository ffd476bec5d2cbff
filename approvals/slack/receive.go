package slack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"time"

	slackgo "github.com/slack-go/slack"
	"github.com/slack-go/slack/socketmode"

	"countersign/audit"
)

// listen takes answers over Socket Mode until ctx ends, and connects anew
// whenever the connection is lost.
func (s *Slack) listen(ctx context.Context) {
	for delay := firstDelay; ctx.Err() == nil; delay = min(2*delay, lastDelay) {
		start := s.Now()
		err := s.socket(ctx)
		s.connected(false)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.note(fmt.Errorf("connection of Socket Mode, which needs the app-level token with the scope connections:write: %w", err))
			s.Log.Warn("the Socket Mode connection is lost", "err", audit.MaskText(err.Error()))
		}
		if s.Now().Sub(start) > lastDelay {
			delay = firstDelay
		}
		var limited *slackgo.RateLimitedError
		if errors.As(err, &limited) {
			delay = max(delay, limited.RetryAfter)
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
}

func (s *Slack) socket(ctx context.Context) error {
	connection, cancel := context.WithCancel(ctx)
	defer cancel()
	client := socketmode.New(s.api, socketmode.OptionLog(log.New(io.Discard, "", 0)))
	ended := make(chan error, 1)
	go func() { ended <- client.RunContext(connection) }()
	for {
		select {
		case err := <-ended:
			return err
		case event := <-client.Events:
			switch event.Type {
			case socketmode.EventTypeConnected:
				s.connected(true)
				s.resume()
			case socketmode.EventTypeDisconnect, socketmode.EventTypeConnecting, socketmode.EventTypeConnectionError, socketmode.EventTypeInvalidAuth:
				s.connected(false)
			}
			if event.Request != nil {
				// It may wait for a commit, and what it began goes on when the connection is lost.
				s.work.Go(func() { s.event(ctx, connection, client, event) })
			}
			if failed, ok := event.Data.(*slackgo.ConnectionErrorEvent); ok {
				// slack-go would wait for up to five minutes, and nobody could answer.
				return fmt.Errorf("connecting: %w", failed.ErrorObj)
			}
		}
	}
}

// event takes what came over a connection and acknowledges it.
func (s *Slack) event(ctx, connection context.Context, client *socketmode.Client, event socketmode.Event) {
	var answer any
	if callback, ok := event.Data.(slackgo.InteractionCallback); ok && event.Type == socketmode.EventTypeInteractive {
		answer = s.answer(ctx, &callback)
	}
	if err := client.AckCtx(connection, event.Request.EnvelopeID, answer); err != nil {
		s.Log.Warn("acknowledging to Slack", "err", audit.MaskText(err.Error()))
	}
}

// Path is where Slack sends interactions to when Socket Mode is off.
const Path = "/slack/interactions"

// maxBody bounds what Slack sends: a modal with its state is at most about 250 KB.
const maxBody = 1 << 20

// Handler takes what Slack signs and sends over HTTP ("Verifying requests from
// Slack"): the signature covers the raw bytes and a time of at most five minutes
// ago, and no request counts twice.
func (s *Slack) Handler(ctx context.Context) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse := func(status int, why error) {
			ip, _, _ := net.SplitHostPort(r.RemoteAddr)
			s.Gate.LoginRefused(audit.Source{IP: ip, Transport: "slack"}, why)
			http.Error(w, http.StatusText(status), status)
		}
		if r.Method != http.MethodPost {
			http.Error(w, "POST is expected", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			refuse(http.StatusRequestEntityTooLarge, errors.New("a request in the name of Slack is too large or broke off"))
			return
		}
		verifier, err := slackgo.NewSecretsVerifier(r.Header, s.SigningSecret)
		if err == nil {
			if _, err = verifier.Write(body); err == nil {
				err = verifier.Ensure()
			}
		}
		if err != nil {
			refuse(http.StatusUnauthorized, fmt.Errorf("a request in the name of Slack is not signed by it, or too old: %w", err))
			return
		}
		if !s.fresh("http\n" + r.Header.Get("X-Slack-Signature")) {
			refuse(http.StatusUnauthorized, errors.New("a request of Slack came twice: it was replayed"))
			return
		}
		form, err := url.ParseQuery(string(body))
		var callback slackgo.InteractionCallback
		if err == nil {
			err = json.NewDecoder(bytes.NewReader([]byte(form.Get("payload")))).Decode(&callback)
		}
		if err != nil {
			refuse(http.StatusBadRequest, fmt.Errorf("a signed request of Slack cannot be read: %w", err))
			return
		}
		answer := s.answer(ctx, &callback)
		if answer == nil {
			return // 200 and an empty body
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(answer)
	})
}
