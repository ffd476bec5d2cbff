package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"countersign/admin"
	"countersign/approvals"
	"countersign/approvals/slack"
	"countersign/configs"
	"countersign/gate"
	"countersign/storage"
)

// newSlack makes the way to Slack, nil where it is not configured.
func newSlack(config *configs.Config, g *gate.Gate, store *storage.Store, people *approvals.Directory, log *slog.Logger) (*slack.Slack, error) {
	c := config.Slack
	if c == nil {
		return nil, nil
	}
	s := slack.Config{
		Gate: g, Store: store, People: people, APIURL: c.APIURL, Channel: c.Channel, MatchEmail: c.MatchEmail,
		Log: log.With("room", "slack"), Now: time.Now,
	}
	for _, secret := range []struct {
		file, begins string
		into         *string
	}{{c.BotTokenFile, "xoxb-", &s.BotToken}, {c.AppTokenFile, "xapp-", &s.AppToken}, {c.SigningSecretFile, "", &s.SigningSecret}} {
		if secret.file == "" {
			continue
		}
		text, err := readSecret(secret.file)
		if err != nil {
			return nil, err
		}
		if text == "" || !strings.HasPrefix(text, secret.begins) {
			err := fmt.Errorf("%s does not hold what Slack gave for it: docs/slack.md says where that is", secret.file)
			if secret.begins != "" {
				err = fmt.Errorf("%w (it begins with %q)", err, secret.begins)
			}
			return nil, err
		}
		*secret.into = text
	}
	return slack.New(s), nil
}

// readSecret reads a file that not everybody may read. A group may: that is how
// Kubernetes hands a Secret to a pod that does not run as root.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("reading a secret: %w", err)
	}
	if info.Mode().Perm()&0o037 != 0 {
		return "", fmt.Errorf("%s may be read by everybody or written by a group (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a secret: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

func slackStatus(s *slack.Slack) *admin.SlackStatus {
	if s == nil {
		return nil
	}
	now := s.Status()
	return &admin.SlackStatus{Connected: now.Connected, Untold: now.Untold, Error: now.Error, ErrorTime: now.Since}
}
