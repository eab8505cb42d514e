//! The terminal interface: draws the report while it is being filled, and listens to keys. It measures nothing, and what it
//! shows is printed again when it closes.

mod view;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::task::JoinHandle;

use self::view::View;
use crate::error::Error;
use crate::limits::FRAME;
use crate::report::Live;
use crate::stop::Stop;

/// Draws until a key closes it, or `measuring` ends other than well.
///
/// # Errors
/// If the terminal cannot be drawn on; the run is stopped then.
pub(crate) fn run(live: &Live, measuring: &JoinHandle<Result<(), Error>>, stop: &Stop) -> Result<(), Error> {
    // Also restores the terminal on a panic, on whatever thread.
    let terminal = ratatui::try_init();
    let ended = terminal.and_then(|terminal| draw(terminal, live, measuring));
    let restored = ratatui::try_restore();
    stop.ask();
    ended.and(restored).map_err(Error::Terminal)
}

fn draw(mut terminal: DefaultTerminal, live: &Live, measuring: &JoinHandle<Result<(), Error>>) -> std::io::Result<()> {
    let mut view = View::default();
    loop {
        let report = live.snapshot();
        // Over without being complete, it was stopped by a signal or an error: the terminal is wanted for its message.
        if measuring.is_finished() && !live.snapshot().is_complete {
            return Ok(());
        }
        terminal.draw(|frame| view.draw(&report, frame))?;
        if event::poll(FRAME)?
            && let Event::Key(key) = event::read()?
            && handle(key, &mut view, report.points.len()) == Next::Close
        {
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Close,
}

fn handle(key: KeyEvent, view: &mut View, points: usize) -> Next {
    if key.kind == KeyEventKind::Release {
        return Next::GoOn;
    }
    match key.code {
        KeyCode::Char('q') => return Next::Close,
        // In raw mode the terminal sends no signal.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Close,
        KeyCode::Right => view.select_next(points),
        KeyCode::Left => view.select_previous(),
        KeyCode::Down => view.next_metric(),
        KeyCode::Up => view.previous_metric(),
        KeyCode::Esc => view.follow(),
        _ => {}
    }
    Next::GoOn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_close_and_move() {
        let mut view = View::default();
        let mut press = |code, modifiers| handle(KeyEvent::new(code, modifiers), &mut view, 3);
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Next::Close);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Next::Close);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE), Next::GoOn);
        assert_eq!(press(KeyCode::Right, KeyModifiers::NONE), Next::GoOn);
    }
}
