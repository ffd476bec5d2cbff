package slack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	slackgo "github.com/slack-go/slack"

	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
)

const (
	// answerTimeout bounds what follows a click.
	answerTimeout = 30 * time.Second
	// ackWithin is how long an acknowledgement waits for what was clicked to be
	// stored, so that a person sees when it was not. Slack waits for three seconds.
	ackWithin = 2500 * time.Millisecond
	// maxOfOne is how many answers of one person may be waiting.
	maxOfOne = 500
	// remember is how long and how many answers are known again when they come twice.
	rememberFor = 10 * time.Minute
	remember    = 10_000
)

// answer takes one interaction and returns what to acknowledge it with, as soon as
// what it led to is stored, or after ackWithin. What comes in is only believed about who
// clicked what; everything shown and decided comes from the store.
func (s *Slack) answer(ctx context.Context, cb *slackgo.InteractionCallback) any {
	if !s.fresh(key(cb)) {
		return nil // delivered twice
	}
	switch cb.Type {
	case slackgo.InteractionTypeBlockActions:
		if len(cb.ActionCallback.BlockActions) == 0 {
			return nil
		}
		a := cb.ActionCallback.BlockActions[0]                     // one click is one action
		if a.ActionID != inputReason && a.ActionID != inputGrant { // fields of a modal, read when it is sent
			s.background(ctx, cb, func(ctx context.Context) error { return s.clicked(ctx, cb, a) })
		}
	case slackgo.InteractionTypeViewSubmission:
		return s.submitted(ctx, cb)
	}
	return nil
}

// key names an interaction: a person's click, or what was sent of a modal.
func key(cb *slackgo.InteractionCallback) string {
	parts := []string{string(cb.Type), cb.User.ID, cb.TriggerID, cb.View.ID, cb.View.Hash}
	for _, a := range cb.ActionCallback.BlockActions {
		parts = append(parts, a.ActionID, a.Value, a.ActionTs)
	}
	return strings.Join(parts, "\n")
}

// fresh reports whether something comes in for the first time.
func (s *Slack) fresh(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	if at, ok := s.seen[key]; ok && now.Sub(at) < rememberFor {
		return false
	}
	if len(s.seen) >= remember {
		for k, at := range s.seen {
			if now.Sub(at) >= rememberFor {
				delete(s.seen, k)
			}
		}
		if len(s.seen) >= remember {
			clear(s.seen) // a vote that comes twice is no second vote
		}
	}
	s.seen[key] = now
	return true
}

// background does what follows a click, when a place is free, and waits for it as
// long as an acknowledgement may. The person is told when it fails.
func (s *Slack) background(ctx context.Context, cb *slackgo.InteractionCallback, f func(ctx context.Context) error) {
	if !s.begin(cb.User.ID) {
		s.Log.Warn("somebody clicks faster than that can be handled", "op", about(cb), "user", approvals.Visible(cb.User.ID))
		return
	}
	done := make(chan struct{})
	s.work.Go(func() {
		defer close(done)
		defer s.end(cb.User.ID)
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		err := s.handle(limited, cb, f)
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.Is(err, errForeign) {
			s.Gate.LoginRefused(audit.Source{Transport: "slack"}, fmt.Errorf("%w: team %q, app %q, user %q", err, cb.Team.ID, cb.APIAppID, cb.User.ID))
			return
		}
		s.Log.Warn("an answer from Slack does not count", "op", about(cb), "user", approvals.Visible(cb.User.ID), "err", audit.MaskText(err.Error()))
		telling, cancel := context.WithTimeout(ctx, answerTimeout) // what came before may have used up its time
		defer cancel()
		if err := s.whisper(telling, cb, refusal(err)); err != nil {
			s.Log.Warn("telling a person in Slack why not", "op", about(cb), "user", approvals.Visible(cb.User.ID), "err", audit.MaskText(err.Error()))
		}
	})
	select {
	case <-done:
	case <-time.After(ackWithin):
	}
}

func (s *Slack) handle(ctx context.Context, cb *slackgo.InteractionCallback, f func(ctx context.Context) error) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.ours(ctx, cb); err != nil {
		return err
	}
	return f(ctx)
}

// begin counts what one person has waiting.
func (s *Slack) begin(user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ofOne[user] >= maxOfOne {
		return false
	}
	s.ofOne[user]++
	return true
}

func (s *Slack) end(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ofOne[user]--; s.ofOne[user] == 0 {
		delete(s.ofOne, user)
	}
}

var errForeign = errors.New("another app or workspace")

// ours checks that an interaction comes from our app in our workspace.
func (s *Slack) ours(ctx context.Context, cb *slackgo.InteractionCallback) error {
	me, err := s.whoami(ctx)
	if err != nil {
		return err
	}
	if cb.APIAppID != me.app || cb.Team.ID != me.team && (me.enterprise == "" || cb.Enterprise.ID != me.enterprise) {
		return errForeign
	}
	return nil
}

// where is the channel that a person is told in.
func where(cb *slackgo.InteractionCallback) string {
	if m, err := parseMeta(cb.View.PrivateMetadata); err == nil && m.Channel != "" {
		return m.Channel
	}
	if cb.Container.ChannelID != "" {
		return cb.Container.ChannelID
	}
	return cb.Channel.ID
}

// about is the operation that an interaction says it is about, for the log.
func about(cb *slackgo.InteractionCallback) string {
	if m, err := parseMeta(cb.View.PrivateMetadata); err == nil {
		return m.Op
	}
	if all := cb.ActionCallback.BlockActions; len(all) > 0 && opForm.MatchString(all[0].Value) {
		return all[0].Value
	}
	return ""
}

// whisper tells one person something that nobody else sees.
func (s *Slack) whisper(ctx context.Context, cb *slackgo.InteractionCallback, text string) error {
	channel := where(cb)
	if channel == "" || text == "" {
		return nil
	}
	_, err := retry(ctx, func() (string, error) {
		return s.api.PostEphemeralContext(ctx, channel, cb.User.ID, slackgo.MsgOptionText(escape(text), false))
	})
	return err
}

// retry asks Slack again when it has had too much for a moment.
func retry[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for tries := 0; ; tries++ {
		v, err := ask()
		var limited *slackgo.RateLimitedError
		if !errors.As(err, &limited) || tries == 3 {
			return v, err
		}
		select {
		case <-time.After(limited.RetryAfter):
		case <-ctx.Done():
			return v, err
		}
	}
}

// clicked handles a button of a message or of the review.
func (s *Slack) clicked(ctx context.Context, cb *slackgo.InteractionCallback, a *slackgo.BlockAction) error {
	switch a.ActionID {
	case actionNext, actionPrevious:
		return s.turn(ctx, cb, a.ActionID == actionNext)
	case actionApprove, actionApproveKind, actionReview, actionReject:
	default:
		return nil
	}
	op, err := s.Store.Operation(a.Value)
	if err != nil || !op.Asked() {
		return errors.Join(gate.ErrNotFound, err)
	}
	if err := s.mine(cb, op.ID); err != nil {
		return err
	}
	m := meta{Op: op.ID, Channel: cb.Container.ChannelID}
	kind := a.ActionID == actionApproveKind
	switch a.ActionID {
	case actionReview:
		if err := s.mayLook(ctx, cb); err != nil {
			return err
		}
		return s.open(ctx, cb, review(op, 0, m))
	case actionReject:
		if op.State != approvals.PendingApproval {
			break // the vote says why not
		}
		return s.open(ctx, cb, ask(op, false, false, m))
	default:
		if op.State == approvals.PendingApproval && (!whole(op) || kind && !offersKind(op)) {
			return errNotWhole
		}
		if reasonRequired(op) && op.State == approvals.PendingApproval {
			return s.open(ctx, cb, ask(op, true, kind, m))
		}
	}
	return s.vote(ctx, cb, op.ID, approvals.Ballot{Approve: a.ActionID != actionReject, Grant: kind})
}

// mine checks that a click comes from a message of ours about this operation:
// whoever can post as the app could else put our button below other words. While
// it is not known which message that is, because an answer was lost, any of the
// channel counts.
func (s *Slack) mine(cb *slackgo.InteractionCallback, op string) error {
	d, err := s.Store.Delivery(op)
	if err != nil {
		return err
	}
	for _, m := range d.Messages {
		if m.Channel == cb.Container.ChannelID && (m.Timestamp == "" || m.Timestamp == cb.Container.MessageTs) {
			return nil
		}
	}
	return errNotMine
}

var errNotMine = errors.New("a button of another message")

// mayLook keeps guests and people of other workspaces in a shared channel from
// what the message does not show.
func (s *Slack) mayLook(ctx context.Context, cb *slackgo.InteractionCallback) error {
	p, err := s.person(ctx, cb.User.ID, nil)
	if err != nil {
		return err
	}
	if p.Barred != "" {
		return fmt.Errorf("%w: %s: %s", approvals.ErrBarred, p.Name, p.Barred)
	}
	return nil
}

func reasonRequired(op approvals.Operation) bool {
	for _, r := range op.Requirements {
		if r.ReasonRequired {
			return true
		}
	}
	return false
}

func (s *Slack) open(ctx context.Context, cb *slackgo.InteractionCallback, view slackgo.ModalViewRequest) error {
	if _, err := s.api.OpenViewContext(ctx, cb.TriggerID, view); err != nil {
		return fmt.Errorf("opening a dialog: %w", err)
	}
	return nil
}

// turn turns a page of the review.
func (s *Slack) turn(ctx context.Context, cb *slackgo.InteractionCallback, forward bool) error {
	m, err := parseMeta(cb.View.PrivateMetadata)
	if err != nil {
		return err
	}
	op, err := s.Store.Operation(m.Op)
	if err != nil {
		return err
	}
	if m.Page--; forward {
		m.Page += 2
	}
	m.Page = max(0, min(m.Page, pages(op)-1))
	if _, err := s.api.UpdateViewContext(ctx, review(op, m.Page, m), "", cb.View.Hash, cb.View.ID); err != nil {
		return fmt.Errorf("turning a page: %w", err)
	}
	return nil
}

// submitted takes what a person sent with a modal.
func (s *Slack) submitted(ctx context.Context, cb *slackgo.InteractionCallback) any {
	m, err := parseMeta(cb.View.PrivateMetadata)
	if err != nil {
		s.Log.Warn("a dialog of Slack is not one of ours", "err", audit.MaskText(err.Error()))
		return nil
	}
	ballot := approvals.Ballot{Approve: cb.View.CallbackID != actionReject}
	if cb.View.State != nil {
		ballot.Reason = cb.View.State.Values[inputReason][inputReason].Value
		ballot.Grant = len(cb.View.State.Values[inputGrant][inputGrant].SelectedOptions) > 0
	}
	required := true
	switch cb.View.CallbackID {
	case actionReject, actionApprove:
	case actionApproveKind:
		ballot.Grant = true
	case actionReview:
		op, err := s.Store.Operation(m.Op)
		if err != nil {
			return nil
		}
		if last := pages(op) - 1; m.Page != last {
			// Another page has come since, or somebody forged it: it goes on from there.
			m.Page = max(0, min(m.Page+1, last))
			next := review(op, m.Page, m)
			return slackgo.NewUpdateViewSubmissionResponse(&next)
		}
		required = reasonRequired(op)
	default:
		return nil
	}
	if required && strings.TrimSpace(ballot.Reason) == "" {
		return slackgo.NewErrorsViewSubmissionResponse(map[string]string{inputReason: "Say why: the agent is told, and it stands in the audit log."})
	}
	s.background(ctx, cb, func(ctx context.Context) error { return s.vote(ctx, cb, m.Op, ballot) })
	return nil
}

// vote casts a vote as whoever Slack says the user is now.
func (s *Slack) vote(ctx context.Context, cb *slackgo.InteractionCallback, id string, ballot approvals.Ballot) error {
	op, err := s.Store.Operation(id)
	if err != nil {
		return err
	}
	p, err := s.person(ctx, cb.User.ID, op.ApproverSets())
	if err != nil {
		return err
	}
	p.Via = "slack " + where(cb)
	_, err = s.Gate.Vote(id, p, ballot)
	return err
}
