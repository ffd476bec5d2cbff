package slack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	slackgo "github.com/slack-go/slack"

	"countersign/approvals"
	"countersign/audit"
)

const (
	// tellers is how many operations are told of at once.
	tellers = 4
	// page is how many are taken from the store at once. Those that were voted on
	// meanwhile are the oldest and come first the next time.
	page = 100
	// firstDelay and lastDelay bound how long to wait after a failure.
	firstDelay = time.Second
	lastDelay  = time.Minute
	// lookAgain is how often the store is asked though nothing called for it.
	lookAgain = time.Minute
)

// deliver keeps what Slack shows as the store has it, until ctx ends.
func (s *Slack) deliver(ctx context.Context) {
	s.takeUp(ctx)
	if _, err := s.whoami(ctx); err != nil && ctx.Err() == nil {
		s.note(err) // and is asked again with what there is to tell
		s.Log.Warn("Slack", "err", audit.MaskText(err.Error()))
	} else if s.AppToken == "" {
		s.connected(true) // as far as can be known: Slack comes to us
	}
	slots := make(chan struct{}, tellers)
	defer func() {
		for range tellers { // until all are back
			slots <- struct{}{}
		}
	}()
	for ctx.Err() == nil {
		now := s.Now()
		s.mu.Lock()
		wait := max(s.paused.Sub(now), s.limited.Sub(now))
		s.mu.Unlock()
		var ids []string
		if wait <= 0 {
			var err error
			if ids, err = s.Store.Untold(page, s.skip); err != nil {
				s.Log.Error("reading what Slack is to be told", "err", err)
			}
			wait = s.next(now)
		}
		for _, id := range ids {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			if !s.claim(id) {
				<-slots
				continue
			}
			go func() {
				err := s.tell(ctx, id)
				s.told(id, err)
				<-slots
				s.wake()
			}()
		}
		if len(ids) > 0 {
			wait = min(wait, firstDelay)
		}
		select {
		case <-s.Store.More():
		case <-s.changed:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// next is how long until something may be tried again.
func (s *Slack) next(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := lookAgain
	for _, at := range s.after {
		if at.After(now) {
			wait = min(wait, at.Sub(now))
		}
	}
	return wait
}

func (s *Slack) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// resume ends a pause that was because Slack could not be reached; not one that
// Slack asked for.
func (s *Slack) resume() {
	s.mu.Lock()
	s.paused = time.Time{}
	delete(s.delays, "")
	s.mu.Unlock()
	s.wake()
}

// takeUp finds what an earlier run left: questions asked before Slack was
// configured, and reminders that are still to come.
func (s *Slack) takeUp(ctx context.Context) {
	open, err := s.Store.OpenOperations()
	if err != nil {
		s.Log.Error("reading open operations", "err", err)
		return
	}
	for _, op := range open {
		if !op.Asked() || ctx.Err() != nil {
			continue
		}
		d, err := s.Store.Delivery(op.ID)
		if err == nil && len(d.Messages) == 0 {
			// Storing that nothing is told yet makes it one of those to tell.
			err = s.Store.Delivered(ctx, d)
		}
		if err != nil {
			s.Log.Error("taking up an operation for Slack", "op", op.ID, "err", err)
		}
		s.remindLater(ctx, op, d)
	}
}

func (s *Slack) skip(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[id] || s.after[id].After(s.Now())
}

// claim makes sure that an operation is told of by one goroutine at a time.
func (s *Slack) claim(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[id] {
		return false
	}
	s.busy[id] = true
	return true
}

func (s *Slack) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, id)
}

// told says how telling of an operation ended. When Slack is out of reach or has
// had enough, everything waits; otherwise this operation does.
func (s *Slack) told(id string, err error) {
	s.release(id)
	if err == nil {
		s.mu.Lock()
		delete(s.after, id)
		delete(s.delays, id)
		delete(s.delays, "")
		s.mu.Unlock()
		s.note(nil)
		return
	}
	if errors.Is(err, context.Canceled) {
		return
	}
	s.note(err)
	var limited *slackgo.RateLimitedError
	var refused slackgo.SlackErrorResponse
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.As(err, &limited):
		s.limited = s.Now().Add(max(limited.RetryAfter, firstDelay))
	case errors.As(err, &refused) && !transient(refused.Err):
		s.after[id] = s.Now().Add(s.delay(id))
		s.Log.Error("Slack refuses a message", "op", id, "err", refused.Err, "details", strings.Join(refused.ResponseMetadata.Messages, "; "), "again", s.after[id].UTC().Format(time.RFC3339))
	default:
		s.paused = s.Now().Add(s.delay(""))
		s.Log.Warn("telling Slack", "op", id, "err", audit.MaskText(err.Error()), "again", s.paused.UTC().Format(time.RFC3339))
	}
}

// delay doubles with each failure of the same thing.
func (s *Slack) delay(of string) time.Duration {
	s.delays[of] = min(max(2*s.delays[of], firstDelay), lastDelay)
	return s.delays[of]
}

// transient are the errors with which Slack says that it is not about the message.
func transient(code string) bool {
	return slices.Contains([]string{"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org", "token_revoked", "token_expired", "invalid_auth", "not_authed", "account_inactive"}, code)
}

// unreachable are the errors that say that a channel cannot be written to.
func unreachable(err error) bool {
	var refused slackgo.SlackErrorResponse
	return errors.As(err, &refused) && slices.Contains([]string{"channel_not_found", "not_in_channel", "is_archived", "restricted_action", "user_not_found", "cannot_dm_bot", "user_disabled"}, refused.Err)
}

// gone are the errors that say that a message is not there any more.
func gone(err error) bool {
	var refused slackgo.SlackErrorResponse
	return errors.As(err, &refused) && slices.Contains([]string{"message_not_found", "cant_update_message", "edit_window_closed"}, refused.Err)
}

// tell brings what Slack shows of one operation to where it stands. What was
// done is stored after each step, so that a crash repeats at most one, which
// the next attempt finds by its metadata.
func (s *Slack) tell(ctx context.Context, id string) error {
	if _, err := s.whoami(ctx); err != nil {
		return err
	}
	op, err := s.Store.Operation(id)
	if err != nil {
		return err
	}
	d, err := s.Store.Delivery(id)
	if err != nil {
		return err
	}
	if len(d.Messages) == 0 && op.State.Open() {
		if d.Messages, err = s.recipients(ctx, op); err != nil {
			return err
		}
	}
	for i := 0; i < len(d.Messages); i++ {
		err := s.show(ctx, op, &d, i)
		if unreachable(err) && s.instead(op, &d, i, err) {
			i--
			continue
		}
		if unreachable(err) && !op.State.Open() {
			// It is over, and nobody can be told there any more.
			s.Log.Warn("the end of an operation cannot be told", "op", op.ID, "to", d.Messages[i].To, "err", err.Error())
			continue
		}
		if err != nil {
			return err
		}
	}
	d.Revision = op.Revision
	if err := s.Store.Delivered(ctx, d); err != nil {
		return err
	}
	s.remindLater(ctx, op, d)
	return nil
}

// recipients are who is to be told of an operation.
func (s *Slack) recipients(ctx context.Context, op approvals.Operation) ([]approvals.Message, error) {
	var all []approvals.Message
	for _, channel := range op.Channels {
		// A namespace's label is not checked by anybody before.
		if !approvals.SlackChannel.MatchString(channel) {
			s.Log.Warn("this is not the id of a channel, so the question goes to the configured one", "op", op.ID, "channel", approvals.Visible(channel))
			continue
		}
		all = append(all, approvals.Message{To: channel, Channel: channel})
	}
	if len(all) == 0 {
		all = append(all, approvals.Message{To: s.Channel, Channel: s.Channel})
	}
	user, err := s.userOf(ctx, op.Principal.OnBehalfOf)
	if user != "" {
		all = append(all, approvals.Message{To: user, Direct: true})
	}
	return all, err
}

// instead takes another way for a message that cannot be delivered: questions go
// to the configured channel, and a direct message is left out.
func (s *Slack) instead(op approvals.Operation, d *approvals.Delivery, i int, why error) bool {
	m := &d.Messages[i]
	other := slices.ContainsFunc(d.Messages, func(o approvals.Message) bool { return !o.Direct && o.To == s.Channel })
	switch {
	case m.Direct || m.To != s.Channel && other:
		d.Messages = slices.Delete(d.Messages, i, i+1)
	case m.To != s.Channel:
		*m = approvals.Message{To: s.Channel, Channel: s.Channel}
	default:
		return false
	}
	s.Log.Warn("a message cannot be delivered where it should", "op", op.ID, "to", m.To, "err", why.Error())
	return true
}

// show posts or updates one message, and tells the end below it.
func (s *Slack) show(ctx context.Context, op approvals.Operation, d *approvals.Delivery, i int) error {
	m := &d.Messages[i]
	if m.Timestamp == "" {
		if err := s.post(ctx, op, d, m); err != nil || m.Timestamp == "" {
			return err
		}
	}
	if m.Revision < op.Revision {
		text, blocks := s.render(op, m)
		_, _, _, err := s.api.UpdateMessageContext(ctx, m.Channel, m.Timestamp,
			slackgo.MsgOptionText(text, false), slackgo.MsgOptionBlocks(blocks...), metadata(op))
		if gone(err) {
			m.Timestamp, m.Begun, m.Revision = "", time.Time{}, 0
			if err := s.Store.Delivered(ctx, *d); err != nil || !op.State.Open() {
				return err
			}
			return s.show(ctx, op, d, i)
		}
		if err != nil {
			return fmt.Errorf("updating a message: %w", err)
		}
		m.Revision = op.Revision
	}
	if op.State.Open() || m.Told || m.Direct {
		return nil
	}
	// Told once at most: the message itself shows the end in any case.
	m.Told = true
	if err := s.Store.Delivered(ctx, *d); err != nil {
		return err
	}
	text, blocks := outcome(op)
	_, _, err := s.api.PostMessageContext(ctx, m.Channel,
		slackgo.MsgOptionTS(m.Timestamp), slackgo.MsgOptionText(text, false), slackgo.MsgOptionBlocks(blocks...))
	if err != nil {
		return fmt.Errorf("telling the outcome: %w", err)
	}
	return nil
}

// post sends a message for the first time, or finds the one that an attempt
// whose end is not known has sent.
func (s *Slack) post(ctx context.Context, op approvals.Operation, d *approvals.Delivery, m *approvals.Message) error {
	if m.Begun.IsZero() && !op.State.Open() {
		return nil // over before it could be asked
	}
	if m.Channel == "" {
		channel, _, _, err := s.api.OpenConversationContext(ctx, &slackgo.OpenConversationParameters{Users: []string{m.To}, ReturnIM: true})
		if err != nil {
			return fmt.Errorf("opening a direct message: %w", err)
		}
		m.Channel = channel.ID
	}
	if m.Begun.IsZero() {
		if _, err := s.whoami(ctx); err != nil { // so that Slack's time is known
			return err
		}
		m.Begun = s.clock.now()
		if err := s.Store.Delivered(ctx, *d); err != nil {
			return err
		}
	} else if err := s.find(ctx, op, m); err != nil {
		return err
	}
	if m.Timestamp == "" && !op.State.Open() {
		return nil
	}
	if m.Timestamp == "" {
		text, blocks := s.render(op, m)
		_, timestamp, err := s.api.PostMessageContext(ctx, m.Channel,
			slackgo.MsgOptionText(text, false), slackgo.MsgOptionBlocks(blocks...), metadata(op),
			slackgo.MsgOptionDisableLinkUnfurl(), slackgo.MsgOptionDisableMediaUnfurl())
		if err != nil {
			return fmt.Errorf("posting a message: %w", err)
		}
		m.Timestamp, m.Revision = timestamp, op.Revision
	}
	return s.Store.Delivered(ctx, *d)
}

func (s *Slack) render(op approvals.Operation, m *approvals.Message) (string, []slackgo.Block) {
	if m.Direct {
		return direct(op)
	}
	return question(op)
}

// eventType marks our messages, so that they can be found again.
const eventType = "countersign_operation"

func metadata(op approvals.Operation) slackgo.MsgOption {
	return slackgo.MsgOptionMetadata(slackgo.SlackMetadata{EventType: eventType, EventPayload: map[string]any{"op": op.ID}})
}

// find looks for a message that was perhaps sent: the answer to the request for
// it was lost, or the process ended before it was stored.
func (s *Slack) find(ctx context.Context, op approvals.Operation, m *approvals.Message) error {
	const pages = 5
	me, err := s.whoami(ctx)
	if err != nil {
		return err
	}
	parameters := &slackgo.GetConversationHistoryParameters{
		ChannelID: m.Channel, Limit: 200, IncludeAllMetadata: true,
		Oldest: fmt.Sprintf("%d.000000", m.Begun.Add(-2*time.Minute).Unix()),
	}
	for range pages {
		history, err := s.api.GetConversationHistoryContext(ctx, parameters)
		var refused slackgo.SlackErrorResponse
		if errors.As(err, &refused) && refused.Err == "missing_scope" {
			s.Log.Warn("whether a message was sent cannot be found out, so it may be sent twice; give the app the scopes channels:history, groups:history and im:history", "op", op.ID)
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for a message that was perhaps sent: %w", err)
		}
		for _, message := range history.Messages {
			if message.BotID == me.bot && message.Metadata.EventType == eventType && message.Metadata.EventPayload["op"] == op.ID {
				m.Timestamp, m.Revision = message.Timestamp, 0
				return nil
			}
		}
		if parameters.Cursor = history.ResponseMetaData.NextCursor; !history.HasMore || parameters.Cursor == "" {
			return nil
		}
	}
	return nil
}

// remindLater reminds once before a question ends: when a quarter of its time is
// left, and at least a minute.
func (s *Slack) remindLater(ctx context.Context, op approvals.Operation, d approvals.Delivery) {
	if op.State != approvals.PendingApproval {
		s.mu.Lock()
		defer s.mu.Unlock()
		if timer := s.remind[op.ID]; timer != nil {
			timer.Stop()
			delete(s.remind, op.ID)
		}
		return
	}
	left := max(op.Expires.Sub(op.Created)/4, time.Minute)
	if d.Reminded || op.Expires.Sub(op.Created) < 2*time.Minute {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remind[op.ID] != nil {
		return
	}
	id := op.ID
	s.remind[id] = time.AfterFunc(op.Expires.Add(-left).Sub(s.Now()), func() {
		s.mu.Lock()
		delete(s.remind, id)
		s.mu.Unlock()
		if err := s.sendReminder(ctx, id); err != nil && ctx.Err() == nil {
			s.Log.Warn("reminding", "op", id, "err", audit.MaskText(err.Error()))
		}
	})
}

// sendReminder reminds below each question. It does so once at most: a reminder
// that is lost does less harm than one that comes again and again.
func (s *Slack) sendReminder(ctx context.Context, id string) error {
	op, err := s.Store.Operation(id)
	if err != nil || op.State != approvals.PendingApproval || ctx.Err() != nil {
		return err
	}
	// The delivery may be under way just now; what it stores must not be undone.
	for !s.claim(id) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
	defer s.release(id)
	d, err := s.Store.Delivery(id)
	if err != nil || d.Reminded {
		return err
	}
	d.Reminded = true
	if err := s.Store.Delivered(ctx, d); err != nil {
		return err
	}
	text, blocks := reminder(op, s.People.Members(op.ApproverSets(), "slackgroup:"), s.People.Members(op.ApproverSets(), "slack:"))
	for _, m := range d.Messages {
		if m.Direct || m.Timestamp == "" {
			continue
		}
		_, _, postErr := s.api.PostMessageContext(ctx, m.Channel, slackgo.MsgOptionTS(m.Timestamp), slackgo.MsgOptionText(text, false), slackgo.MsgOptionBlocks(blocks...))
		err = errors.Join(err, postErr)
	}
	return err
}
