package slack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	slackgo "github.com/slack-go/slack"

	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
)

// Store is what Slack needs of the store beside the operations: what is still to
// be told, and what was told.
type Store interface {
	Operation(id string) (approvals.Operation, error)
	OpenOperations() ([]approvals.Operation, error)
	// Untold lists operations that are shown otherwise than they are, oldest
	// first, at most so many, without those to skip.
	Untold(most int, skip func(id string) bool) ([]string, error)
	// More holds an item when Untold may give others than before.
	More() <-chan struct{}
	// Delivery is what was told of an operation, zero when nothing was.
	Delivery(id string) (approvals.Delivery, error)
	// Delivered stores it.
	Delivered(ctx context.Context, d approvals.Delivery) error
}

// Config is what New needs.
type Config struct {
	Gate   *gate.Gate
	Store  Store
	People *approvals.Directory
	// BotToken is for the Web API. AppToken opens a Socket Mode connection; without
	// it SigningSecret verifies what comes in at Handler.
	BotToken, AppToken, SigningSecret string
	// APIURL is the address of the Web API, with a slash at its end.
	APIURL string
	// Channel is where people are asked when nothing else says where.
	Channel string
	// MatchEmail takes confirmed e-mail addresses for members of approver sets,
	// and for finding the person on whose behalf an agent acts.
	MatchEmail bool
	Log        *slog.Logger
	Now        func() time.Time
}

// Slack asks people in Slack.
type Slack struct {
	Config
	api *slackgo.Client

	mu     sync.Mutex
	clock  slackClock
	self   *self                // nil until Slack has said who we are
	status Status               // but for Untold
	seen   map[string]time.Time // what came in lately, to know it again
	work   sync.WaitGroup
	ofOne  map[string]int // answers of each person that are being handled
	slots  chan struct{}  // of answers that are being handled

	// Of the delivery, see deliver.go; guarded by mu.
	busy    map[string]bool
	after   map[string]time.Time
	delays  map[string]time.Duration
	paused  time.Time // until then, because Slack could not be reached
	limited time.Time // until then, because Slack had too much
	remind  map[string]*time.Timer
	changed chan struct{}
}

// Status is how the connection to Slack is.
type Status struct {
	// Connected is whether answers can come in.
	Connected bool
	// Error is what Slack last failed with, and when; empty after a success.
	Error string
	Since time.Time
	// Untold counts what Slack has still to be told, up to a thousand.
	Untold int
}

// self is who the app is.
type self struct{ team, enterprise, app, bot string }

const (
	// apiTimeout bounds one request to Slack.
	apiTimeout = 10 * time.Second
	// maxAnswers bounds how many clicks are handled at once.
	maxAnswers = 32
)

// New makes the adapter; nothing is sent before Run.
func New(c Config) *Slack {
	s := &Slack{
		Config: c, slots: make(chan struct{}, maxAnswers), seen: map[string]time.Time{}, ofOne: map[string]int{},
		busy: map[string]bool{}, after: map[string]time.Time{}, delays: map[string]time.Duration{},
		remind: map[string]*time.Timer{}, changed: make(chan struct{}, 1),
	}
	s.api = slackgo.New(c.BotToken,
		slackgo.OptionAPIURL(c.APIURL), slackgo.OptionAppLevelToken(c.AppToken),
		slackgo.OptionHTTPClient(&http.Client{Timeout: apiTimeout, Transport: &s.clock}))
	return s
}

// Run tells Slack what there is to tell and takes answers, until ctx ends. Slack
// being out of reach is no reason to end: what is to be told waits in the store.
func (s *Slack) Run(ctx context.Context) {
	if s.AppToken != "" {
		s.work.Go(func() { s.listen(ctx) })
	}
	s.deliver(ctx)
	s.work.Wait()
}

// Status is how the connection is now.
func (s *Slack) Status() Status {
	s.mu.Lock()
	status := s.status
	s.mu.Unlock()
	if ids, err := s.Store.Untold(1000, func(string) bool { return false }); err == nil {
		status.Untold = len(ids)
	}
	return status
}

// whoami asks Slack once who the app is: answers of other apps and of people of
// other workspaces do not count.
func (s *Slack) whoami(ctx context.Context) (self, error) {
	s.mu.Lock()
	known := s.self
	s.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	auth, err := s.api.AuthTestContext(ctx)
	if err != nil {
		return self{}, fmt.Errorf("asking Slack who we are (auth.test): %w", err)
	}
	bot, err := s.api.GetBotInfoContext(ctx, slackgo.GetBotInfoParameters{Bot: auth.BotID})
	if err != nil {
		return self{}, fmt.Errorf("asking Slack for our app (bots.info, needs the scope users:read): %w", err)
	}
	if auth.TeamID == "" || bot.AppID == "" {
		return self{}, errors.New("Slack does not say which workspace and app the bot token belongs to")
	}
	me := self{team: auth.TeamID, enterprise: auth.EnterpriseID, app: bot.AppID, bot: auth.BotID}
	s.mu.Lock()
	s.self = &me
	s.mu.Unlock()
	return me, nil
}

// note keeps what Slack last failed with, for countersign status.
func (s *Slack) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.status.Error, s.status.Since = "", time.Time{}
		return
	}
	s.status.Error, s.status.Since = audit.MaskText(err.Error()), s.Now()
}

func (s *Slack) connected(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Connected = yes
	if s.self != nil && yes {
		s.status.Error = ""
	}
}
