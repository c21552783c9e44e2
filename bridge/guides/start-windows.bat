@echo off
rem Starts Phosphene, as "py -m bridge.bootstrap run" does, by a double-click. Never run on Windows so far.
rem The window stays open when something is wrong. Arguments are passed on to "phosphene run".
setlocal EnableExtensions DisableDelayedExpansion
title Phosphene

rem pushd also opens folders on other machines, which cd does not.
pushd "%~dp0..\.."
if errorlevel 1 goto no_folder
if not exist "bridge\bootstrap.py" goto no_folder

rem Python starts only to show that it does: the Store's "python" is a signpost where none is installed.
set "PYTHON=py"
py -c "import sys" >nul 2>nul && goto start
set "PYTHON=python"
python -c "import sys" >nul 2>nul && goto start
echo.
echo Python was not found. Install Python 3.13, 64-bit, from
echo     https://www.python.org/downloads/windows/
echo and start this file again.
set "CODE=9009"
goto wrong

:start
%PYTHON% -m bridge.bootstrap run %*
set "CODE=%ERRORLEVEL%"
if "%CODE%"=="0" goto end
echo.
echo Phosphene ended with an error, code %CODE%. The lines above say why.
goto wrong

:no_folder
echo.
echo Phosphene's files are not beside this one. Unpack the whole ZIP first, then start this file from the folder
echo bridge\guides of the unpacked copy.
set "CODE=1"

:wrong
echo.
pause

:end
popd
endlocal & exit /b %CODE%
